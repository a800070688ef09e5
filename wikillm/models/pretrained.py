"""Opens a Hugging Face model folder: local safetensors files only, no remote code, no lost tensor.

A damaged file raises `CheckpointError`, a folder of another kind `ConfigError`, a failing disk
`MachineError`. transformers itself would fill missing weights with random values and only log it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from wikillm.core.errors import CheckpointError, ConfigError, MachineError, WikiLLMError
from wikillm.core.faults import as_refusal, is_of_the_file

Read = TypeVar("Read")


def load_weights(
    folder: Path,
    *,
    advice: str,
    takes_all: bool = False,
    spare: Callable[[str], bool] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The model in `folder` with its weights.

    Args:
        advice: the fix in errors about the folder.
        takes_all: whether to refuse a weight in the folder that the model has no parameter for.
        spare: with `takes_all`, returns whether a weight of that name may be left out.
        options: further options of `from_pretrained`.

    Raises:
        CheckpointError: a file is damaged, or weights are missing, left over or of another shape.
        ConfigError: the folder holds no model that transformers knows.
        MachineError: the folder cannot be read, or the model does not fit in memory.
    """

    def load() -> tuple[Any, dict[str, Any]]:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        return loaded[0], loaded[1]

    model, report = reading(folder, load, advice=advice)
    # transformers only logs what it could not load: refuse it here.
    kinds = ("missing_keys", "mismatched_keys", *(("unexpected_keys",) if takes_all else ()))
    wrong = {kind: sorted(map(str, report.get(kind) or ())) for kind in kinds}
    if spare is not None and takes_all:
        wrong["unexpected_keys"] = [name for name in wrong["unexpected_keys"] if not spare(name)]
    if any(wrong.values()):
        got = "\n".join(
            f"{kind}: {', '.join(names[:5])} ({len(names)})"
            for kind, names in wrong.items()
            if names
        )
        raise CheckpointError(
            f"The weights in {folder} do not fit its config.json.", got=got, fix=advice
        )
    opened: PreTrainedModel = model
    return opened


def reading(folder: Path, read: Callable[[], Read], *, advice: str) -> Read:
    """Call `read`, and turn errors of transformers, tokenizers or safetensors into WikiLLMError."""
    try:
        return read()
    except WikiLLMError:
        raise
    except Exception as error:
        refusal = as_refusal(error)
        said = next(iter(str(error).strip().splitlines()), "")[:300] or repr(error)
        if isinstance(refusal, MachineError):
            got = refusal.got
            if str(folder) not in (got or ""):
                got = f"{folder}: {got}"
            raise MachineError(refusal.what, got=got, fix=refusal.fix) from error
        if isinstance(refusal, CheckpointError | None) and (damaged := _damaged_files(folder)):
            raise CheckpointError(
                f"{folder} is damaged.", got="\n".join(damaged), fix=advice
            ) from error
        if isinstance(error, RuntimeError | SafetensorError) or refusal is not None:
            raise CheckpointError(
                f"The weights in {folder} cannot be loaded.", got=said, fix=advice
            ) from error
        raise ConfigError(
            f"{folder} is not a model that transformers can load.", got=said, fix=advice
        ) from error


def _damaged_files(folder: Path) -> list[str]:
    """The JSON and safetensors files of a model folder that cannot be parsed, with the reason."""
    from safetensors import safe_open

    damaged = []
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            if not is_of_the_file(error):
                raise
            damaged.append(f"{path.name}: {error}")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):  # type: ignore[no-untyped-call]
                pass
        except (OSError, SafetensorError) as error:
            if not is_of_the_file(error):
                raise
            damaged.append(f"{path.name}: {path.stat().st_size:,} bytes: {error}")
    return damaged
