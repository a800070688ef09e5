"""Opens a Hugging Face folder: local files, safetensors, no code, and every tensor of the model.

A damaged file is a `CheckpointError`, a folder of another kind a `ConfigError`, a failing disk a
`MachineError`. transformers itself fills missing weights with random ones and only logs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from wikillm.core.errors import CheckpointError, ConfigError, MachineError, WikiLLMError
from wikillm.core.faults import as_refusal

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
        advice: what to do about a folder that is not a model.
        takes_all: refuse weights that the model has no place for.
        spare: whether such a weight may be left out, by its name.
        options: of `from_pretrained`, besides those that keep it local.

    Raises:
        CheckpointError: a file is damaged, or weights are missing, left over or of another shape.
        ConfigError: the folder holds no model that transformers knows.
        MachineError: it cannot be read, or does not fit in memory.
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
    kinds = ("missing_keys", "mismatched_keys", *(("unexpected_keys",) if takes_all else ()))
    left = {kind: sorted(map(str, report.get(kind) or ())) for kind in kinds}
    if spare is not None and takes_all:
        left["unexpected_keys"] = [name for name in left["unexpected_keys"] if not spare(name)]
    if any(left.values()):
        got = "\n".join(
            f"{kind}: {', '.join(names[:5])} ({len(names)})"
            for kind, names in left.items()
            if names
        )
        raise CheckpointError(
            f"The weights in {folder} do not fit its config.json.", got=got, fix=advice
        )
    opened: PreTrainedModel = model
    return opened


def reading(folder: Path, read: Callable[[], Read], *, advice: str) -> Read:
    """Calls `read`; errors of transformers, tokenizers or safetensors become errors of ours."""
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
    """The files of a model folder that are not what their names say, each with the reason."""
    from safetensors import safe_open

    damaged = []
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            damaged.append(f"{path.name}: {error}")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):  # type: ignore[no-untyped-call]
                pass
        except (OSError, SafetensorError) as error:
            damaged.append(f"{path.name}: {path.stat().st_size:,} bytes: {error}")
    return damaged
