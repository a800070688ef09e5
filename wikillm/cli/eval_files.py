"""`wikillm eval MODEL --text` and `--tasks`: score a model on files and record the results."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wikillm.checkpoints.latest import find_complete
from wikillm.cli.arguments import index, positive, size
from wikillm.cli.run_config import split_settings
from wikillm.config.load import load
from wikillm.config.schema_data import DataSection
from wikillm.core.errors import ConfigError, DataError, DivergedError
from wikillm.core.files import read_object, sha256_file
from wikillm.evals.questions import ChoiceTask, read_tasks
from wikillm.evals.results import (
    FOLDER,
    TASK_HEAD,
    TEXT_HEAD,
    model_record,
    task_rows,
    text_rows,
    write_results,
)

if TYPE_CHECKING:
    from wikillm.generate.load import LoadedModel


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files of your own").add_argument
    help = "score these texts: files, folders or globs, in any format of data.path"
    add("--text", nargs="+", metavar="FILE", help=help)
    help = "with --text: read at most N bytes of text per file, such as 10MB (default: all)"
    add("--max-bytes", type=size, metavar="N", help=help)
    help = "ceval:FOLDER, cmmlu:FOLDER, choices:FILE or lm_eval:TASK, separated by commas"
    add("--tasks", metavar="KIND:PATH", help=help)
    help = "folder with the YAML files of lm_eval tasks (default: the tasks in lm-eval's package)"
    add("--tasks-dir", metavar="FOLDER", help=help)
    help = (
        "examples before each question (default: ceval and cmmlu 5, choices 0, lm_eval the task's)"
    )
    add("--shots", type=index, metavar="N", help=help)
    help = "score the answers' text, or list the choices and score their letters (default cloze)"
    add("--form", choices=("cloze", "letters"), default="cloze", help=help)
    help = "score N evenly spaced questions of each task (default: all)"
    add("--max-questions", type=positive, metavar="N", help=help)
    help = (
        "context length in tokens (default: the run's sequence length; without a run the model's "
        "maximum, at most 4096)"
    )
    add("--context", type=positive, metavar="N", help=help)
    help = "write the record to RUN/evals/NAME.json (default: named after checkpoint and files)"
    add("--name", metavar="NAME", help=help)
    help = "write the record to this file; for a model without a run directory"
    add("--out", metavar="FILE", help=help)


def evaluate_files(args: argparse.Namespace) -> int:
    from wikillm.cli.generate import open_model

    # Bad files, tasks and record paths are refused before the model is loaded.
    if args.rest and not args.text:
        what = "`wikillm eval --tasks` takes no configuration keys."
        raise ConfigError(what, got=" ".join(args.rest))
    specs, lm_eval_names = split_tasks(args.tasks)
    tasks = read_tasks(specs, args.form)
    if args.tasks_dir is not None and not lm_eval_names:
        what = "--tasks-dir is for lm_eval tasks, and --tasks names no lm_eval task."
        raise ConfigError(what, got=str(args.tasks), fix="--tasks lm_eval:TASK")
    if lm_eval_names:
        from wikillm.evals.lm_eval_tasks import check_lm_eval

        check_lm_eval(lm_eval_names, Path(args.tasks_dir) if args.tasks_dir else None)
    data = text_settings(args) if args.text else None
    from wikillm.generate.load import is_model_folder  # imports torch

    model_folder = Path(args.model)
    folder = model_folder if is_model_folder(model_folder) else find_complete(model_folder)
    target = record_path(args, folder)
    args.context = args.context or trained_length(folder)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        loaded = open_model(model_folder, args.device, trust=args.trust_checkpoint)
        values: dict[str, Any] = {}
        if data is not None:
            values["text"] = score_text(args, data, loaded)
        if args.tasks:
            values["tasks"] = [score_task(args, task, loaded) for task in tasks]
            values["tasks"] += score_lm_eval(args, lm_eval_names, loaded) if lm_eval_names else []
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        raise DivergedError(
            "The model's loss on these files is not a finite number.",
            got=str(folder),
            fix="an earlier checkpoint of the run",
        ) from None
    model = model_record(folder)
    if target is not None:
        write_results(target, model, values)
    record = {"model": model, **values}
    print(json.dumps(record, ensure_ascii=False) if args.json else shown(record))
    if not args.json:
        print(f"record     {target or 'not written: --out FILE'}")
    return 0


def text_settings(args: argparse.Namespace) -> DataSection:
    """The data section for the texts. Raises ConfigError for settings outside `data`."""
    from wikillm.data.fetch.find import find_sources

    paths, settings = split_settings(args.text)
    settings += args.rest
    others = [word for word in settings if not word.removeprefix("--").startswith("data.")]
    if others or not paths:
        raise ConfigError(
            "`wikillm eval --text` takes files, and data.* settings for reading them.",
            got=" ".join(others) or "no file",
            fix="--text FILE data.format=lines data.text_key=content",
        )
    for path in paths:
        if not any(sign in path for sign in "*?[:") and not os.path.exists(
            os.path.expanduser(path)
        ):
            raise ConfigError(
                "--text names a file that does not exist.", got=path, fix="a file, folder or glob"
            )
    base = ["data.preset=null", f"data.path={paths[0]}"]
    data = load(None, [*base, *settings]).config.data.model_copy(update={"path": tuple(paths)})
    find_sources(data)
    return data


def score_text(args: argparse.Namespace, data: DataSection, loaded: LoadedModel) -> dict[str, Any]:
    from wikillm.data.inspect.documents import read_documents
    from wikillm.evals.text import context_limit, text_losses

    limit = context_limit(loaded.model.config, args.context)
    found = text_losses(
        loaded.model,
        loaded.text_tokenizer,
        read_documents(data, args.max_bytes),
        limit=limit,
        batch_size=args.batch_size,
        device=loaded.model.device,
    )
    if not found.parts:
        raise DataError(
            "There are no documents in the texts.",
            got=", ".join(data.path),
            fix="set data.format, and data.text_key for JSON",
        )
    files = {source: sha256_file(Path(source)) for source, _ in found.parts}
    return {**found.to_json(), "context": limit, "max_bytes": args.max_bytes, "files": files}


def score_task(args: argparse.Namespace, task: ChoiceTask, loaded: LoadedModel) -> dict[str, Any]:
    from wikillm.evals.choices import encode_task, score_choices
    from wikillm.evals.text import context_limit

    task = task.first(args.max_questions)
    shots = task.shots if args.shots is None else args.shots
    limit = context_limit(loaded.model.config, args.context)
    encoded = encode_task(loaded.text_tokenizer, task, shots=shots, limit=limit)
    score = score_choices(
        loaded.model,
        encoded,
        [question.subject for question in task.questions],
        batch_size=args.batch_size,
        device=loaded.model.device,
    )
    assert score is not None, "`should_stop` is not passed"
    return score.to_json(task, shots=shots, max_questions=args.max_questions, context=limit)


def split_tasks(tasks: str | None) -> tuple[list[str], list[str]]:
    """(specifications of WikiLLM's own tasks, names of lm-eval tasks) in `--tasks`.

    `lm_eval:a,b` names two lm-eval tasks: a word without a colon is of the kind before it.
    """
    specs: list[str] = []
    lm_eval_names: list[str] = []
    is_lm_eval = False
    for word in tasks.split(",") if tasks else []:
        kind, colon, name = word.partition(":")
        is_lm_eval = kind == "lm_eval" if colon else is_lm_eval
        if is_lm_eval:
            lm_eval_names.append(name or kind)
        else:
            specs.append(word)
    return specs, lm_eval_names


def score_lm_eval(
    args: argparse.Namespace, names: list[str], loaded: LoadedModel
) -> list[dict[str, Any]]:
    from wikillm.evals.lm_eval_tasks import run_lm_eval
    from wikillm.evals.text import context_limit

    with contextlib.redirect_stdout(sys.stderr):
        return run_lm_eval(
            loaded.model,
            loaded.tokenizer,
            loaded.text_tokenizer.eos_token,
            names,
            Path(args.tasks_dir) if args.tasks_dir else None,
            shots=args.shots,
            max_questions=args.max_questions,
            limit=context_limit(loaded.model.config, args.context),
            batch_size=args.batch_size,
        )


def trained_length(folder: Path) -> int | None:
    """The sequence length of the run that a checkpoint belongs to, the longest trained context;
    None without a run."""
    from wikillm.export.run_records import run_of

    length = read_object((run_of(folder) or folder) / "plan.json").get("sequence_length")
    return length if isinstance(length, int) and length > 0 else None


def record_path(args: argparse.Namespace, folder: Path) -> Path | None:
    """The file for the record: --out, or a file in the checkpoint's run directory; None without
    either."""
    from wikillm.export.run_records import run_of

    if args.name is not None and not re.fullmatch(r"[\w][\w.\-]*", args.name):
        fix = "letters, digits, dot, dash and underscore"
        raise ConfigError("--name is not a valid file name.", got=args.name, fix=fix)
    if args.out is not None:
        return Path(args.out)
    run = run_of(folder)
    if run is None:
        if args.name is not None:
            raise ConfigError(
                "--name writes into a run directory, but the model is not in a run directory.",
                got=str(folder),
                fix="--out FILE",
            )
        return None
    scored = [Path(path).stem for path in (args.text or [])[:1]]
    specs, lm_eval_names = split_tasks(args.tasks)
    for spec in specs:
        kind, _, path = spec.partition(":")
        scored.append(Path(path).stem if kind == "choices" else kind)
    scored += lm_eval_names
    name = args.name or "-".join([folder.name, *filter(None, scored)])
    return run / FOLDER / f"{name}.json"


def shown(record: dict[str, Any]) -> str:
    """A record as text for the terminal."""
    lines = []
    text = record.get("text")
    if text is not None:
        of = f"{text['tokens']:,} tokens, {text['text_bytes']:,} bytes"
        lines.append(f"text       {of}, {text['documents']:,} documents")
        lines.append(f"context    {text['context']:,} tokens")
        lines += table([TEXT_HEAD[1:], *(row[1:] for row in text_rows([record]))])
    if record.get("tasks"):
        rows = task_rows([record], subjects=True)
        lines += table([TASK_HEAD[1:], *(row[1:] for row in rows)])
    for task in record.get("tasks", ()):
        lines += [f"{task['task']}: {line}" for line in remarks(task["overall"])]
    return "\n".join(lines)


def remarks(overall: dict[str, Any]) -> list[str]:
    """Lines on questions that exceeded the context: shortened, cut or left out."""
    texts = {
        "with_fewer_examples": "questions had fewer examples before them, to fit the context",
        "cut": "questions lost their beginning, to fit the context",
        "left_out": "questions were left out: their choices leave no room for the question",
    }
    return [f"{overall[key]:,} {text}" for key, text in texts.items() if overall.get(key)]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns: the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines
