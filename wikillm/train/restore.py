"""Loads the tensors of a checkpoint, with or without DeepSpeed, on any number of ranks.

`resume.py` decides which checkpoint is loaded and which settings stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from wikillm.checkpoints.layout import AVERAGE
from wikillm.checkpoints.tensor_digests import RANKS, rank_file
from wikillm.checkpoints.tensor_files import TensorReader, open_tensors
from wikillm.checkpoints.tensor_layout import TensorSpec
from wikillm.checkpoints.verified_bytes import VerifiedBytes
from wikillm.core.errors import CheckpointError
from wikillm.export.weights import read_average
from wikillm.train.fragments.average import WeightAverage
from wikillm.train.fragments.state import Read, TrainingState
from wikillm.train.random_state import set_random_state

_SHOWN = 6  # names in an error


def is_portable(checkpoint: Path) -> bool:
    """Whether the checkpoint loads on any number of ranks and any engine.

    Checkpoints of format 1 (version 0.2) do not: DeepSpeed or Hugging Face wrote their state.
    """
    return (checkpoint / RANKS).is_dir()


def restore(
    checkpoint: Path,
    state: TrainingState,
    run_state: Mapping[str, Any],
    verified: VerifiedBytes | None,
) -> None:
    """Fill the weights and the optimizer of this rank. (all ranks)

    Args:
        run_state: the checkpoint's wikillm_state.json; "engine" holds the optimizer's step counts.
        verified: contents of files that verification has already read.

    Raises CheckpointError if the tensors are not those of this model and optimizer.
    """
    counters = run_state.get("engine")
    if counters is None:
        raise CheckpointError(
            f"{checkpoint} lacks the optimizer's step counts.", fix="resume from another checkpoint"
        )
    with open_tensors(checkpoint, verified) as reader:
        found = {spec for spec in reader.specs if spec.kind != "average"}
        check_same_tensors(checkpoint, found, state.specs())
        state.load(reading(reader), counters)


def restore_average(
    checkpoint: Path, average: WeightAverage | None, verified: VerifiedBytes | None = None
) -> None:
    """Load the moving average of the weights if run and checkpoint both have one. (all ranks)

    Raises CheckpointError if its tensors are not those of this model.
    """
    if average is None:
        return
    if not is_portable(checkpoint):
        _restore_old_average(checkpoint, average)
        return
    with open_tensors(checkpoint, verified) as reader:
        found = [spec for spec in reader.specs if spec.kind == "average"]
        if found:
            check_same_tensors(checkpoint, found, average.specs())
            average.load(reading(reader))


def _restore_old_average(checkpoint: Path, average: WeightAverage) -> None:
    """Load the average of a checkpoint of format 1, which stores whole tensors."""
    if not (checkpoint / AVERAGE).is_dir():
        return
    whole = read_average(checkpoint)
    found = [TensorSpec("average", name, tuple(value.shape)) for name, value in whole.items()]
    check_same_tensors(checkpoint, found, average.specs())
    average.load(lambda spec, start, stop: whole[spec.name].reshape(-1)[start:stop])


def reading(reader: TensorReader) -> Read:
    """Wrap `reader` as a function that returns torch tensors."""
    return lambda spec, start, stop: torch.from_numpy(reader.read(spec, start, stop))


def check_same_tensors(
    checkpoint: Path, stored: Iterable[TensorSpec], expected: Iterable[TensorSpec]
) -> None:
    """Raise CheckpointError if the sets of tensors differ; it names the differing tensors."""
    missing = sorted(set(expected) - set(stored))
    unknown = sorted(set(stored) - set(expected))
    if missing or unknown:
        raise CheckpointError(
            f"The tensors in {checkpoint} do not match this run's model and optimizer.",
            got=f"missing: {_named(missing)}\nunexpected: {_named(unknown)}",
            fix="resume with the model and the optimizer that were trained",
        )


def check_loaded_weights(result: Any, tied: Iterable[str]) -> None:
    """Raise CheckpointError for missing or unknown weights in torch's load result.

    Tied weights may be missing, because each is stored once.
    """
    missing = sorted(set(result.missing_keys) - set(tied))
    if missing or result.unexpected_keys:
        raise CheckpointError(
            "The weights in the checkpoint do not match this run's model.",
            got=f"missing: {', '.join(missing) or 'none'}\n"
            f"unexpected: {', '.join(result.unexpected_keys) or 'none'}",
            fix="resume with the model that was trained",
        )


def restore_random_state(checkpoint: Path, rank: int) -> None:
    """Load this rank's random state; ranks added since the save keep the state of run.seed."""
    path = checkpoint / rank_file(rank)
    if not path.is_file():
        return  # a new rank: verification has checked the files of all ranks that saved
    try:
        set_random_state(json.loads(path.read_text(encoding="utf-8"))["random"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} has no readable random state.", got=repr(error)) from None


def _named(specs: list[TensorSpec]) -> str:
    shown = [f"{spec.kind} {spec.name} {list(spec.shape)}" for spec in specs[:_SHOWN]]
    more = [f"{len(specs) - _SHOWN} more"] if len(specs) > _SHOWN else []
    return ", ".join([*shown, *more]) or "none"
