"""Run tasks of lm-evaluation-harness on a loaded model, offline, with its prompts and metrics.

lm-eval is an optional dependency: `pip install "wikillm[eval]"`. It joins context and answer in
another way than `choices`, and puts no start token before a text. So the scores of the same
questions may differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wikillm.core.errors import ConfigError, DataError, did_you_mean
from wikillm.core.files import sha256_file
from wikillm.evals.choices import wilson_interval

_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def check_lm_eval(names: Sequence[str], folder: Path | None) -> None:
    """Raises ConfigError if lm-eval is not installed, or does not find a task."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "Tasks of lm-eval need the package lm-eval.",
            got="no module lm_eval",
            fix='pip install "wikillm[eval]"',
        )
    if folder is not None and not folder.is_dir():
        raise ConfigError("--tasks-dir is not a folder.", got=str(folder))
    known = _tasks_in(folder).all_tasks
    for name in names:
        if name not in known:
            where = f"in {folder}: {', '.join(known[:8]) or 'no task'}"
            near = did_you_mean(name, known)
            raise ConfigError(
                f"lm-eval has no task {name!r}.",
                got=where if folder else f"{len(known):,} tasks come with lm-eval",
                fix=f"lm_eval:{near}" if near else "pass --tasks-dir the folder of its YAML file",
            )


def _tasks_in(folder: Path | None) -> Any:
    """The tasks in the folder, or the tasks that come with lm-eval if `folder` is None."""
    # lm-eval's libraries read these variables only once, when they are imported.
    os.environ.update(_OFFLINE)
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    return TaskManager(include_path=str(folder), include_defaults=False)


def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    eos_token: str,
    names: Sequence[str],
    folder: Path | None,
    *,
    shots: int | None,
    max_questions: int | None,
    limit: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Run the tasks and return one record per task.

    Args:
        folder: folder of the tasks' YAML files; None for the tasks that come with lm-eval.
        shots: number of examples; None for the task's own number.
        limit: number of tokens that the model reads at once; lm-eval cuts longer contexts from
            the left.

    Raises DataError when a task's files are not on this machine.
    """
    manager = _tasks_in(folder)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos_token, pad_token=eos_token
    )
    wrapped = HFLM(pretrained=model, tokenizer=fast, batch_size=batch_size, max_length=limit)
    try:
        found: Any = simple_evaluate(
            wrapped,
            tasks=list(names),
            task_manager=manager,
            num_fewshot=shots,
            limit=max_questions,
            log_samples=False,
        )
    except OSError as error:  # ConnectionError, FileNotFoundError
        raise DataError(
            "A task of lm-eval needs files that are not on this machine.",
            got=str(error).split("\n")[0],
            fix="evaluation is offline, so name local files in the task's YAML:\n"
            "dataset_path: json\ndataset_kwargs: {data_files: {test: FILE}}",
        ) from None
    except AssertionError as error:
        # lm-eval asserts that at least one token belongs to the answer alone.
        raise DataError(
            "lm-eval cannot score a task with this tokenizer.",
            got="the end of a context and the whole answer are one token"
            + (f" ({error})" if str(error) else ""),
            fix="use choices:FILE instead, which scores such a token",
        ) from error
    return [_record(name, values, found) for name, values in found["results"].items()]


def _record(name: str, values: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    questions = int(found["n-samples"].get(name, {}).get("effective", 0))
    metrics = {
        key.removesuffix(",none"): value
        for key, value in values.items()
        if isinstance(value, float) and "," in key
    }
    accuracy = metrics.get("acc")
    interval = None
    if accuracy is not None and questions:
        interval = list(wilson_interval(accuracy * questions, questions))
    config = found["configs"].get(name, {})
    return {
        "task": name,
        "kind": "lm_eval",
        "shots": found["n-shot"].get(name, 0),
        "context": found.get("max_length"),
        "lm_eval": version("lm_eval"),
        "overall": {
            "questions": questions,
            "accuracy": accuracy,
            "interval": interval,
            "metrics": metrics,
        },
        "subjects": {},
        "files": dict(_digests(config)),
    }


def _digests(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and sha256 of the YAML file of a task and of its local data files."""
    named = [config.get("metadata", {}).get("config_source")]
    files = (config.get("dataset_kwargs") or {}).get("data_files", [])
    for value in files.values() if isinstance(files, Mapping) else [files]:
        named += value if isinstance(value, list) else [value]
    for path in named:
        if isinstance(path, str) and Path(path).is_file():
            yield path, sha256_file(Path(path))
