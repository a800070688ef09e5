"""What goes wrong while a checkpoint is written or read, told as what it is: the machine's fault, or a damaged file.

A save that fails removes what it had staged, so that the next start finds the room, and names the newest complete
checkpoint. A file that does not load in a checkpoint whose manifest is right (somebody wrote the manifest again, another
version made the file) is a `CheckpointError`, wherever in Hugging Face's or DeepSpeed's loading it is met.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wikillm.checkpoints.lineage import arrange
from wikillm.core.errors import CheckpointError, MachineError, WikiLLMError
from wikillm.core.faults import as_refusal
from wikillm.models.unpickle import refused_name

_LOADERS = ("_load_", "load_checkpoint", "deepspeed_load_", "load_from_json", "load_file")
"""How the functions of transformers, DeepSpeed and safetensors begin that read a checkpoint."""


@contextmanager
def saving(staging: Path, step: int) -> Iterator[None]:
    """Around what writes the checkpoint of `step` into `staging`. (any rank)

    Raises:
        MachineError: the disk is full, read-only, failing; what this save had staged is removed.
    """
    try:
        yield
    except Exception as error:
        refusal = as_refusal(error)
        if not isinstance(refusal, MachineError) or isinstance(error, MachineError):
            raise
        # Whatever other ranks still write there cannot become a checkpoint any more.
        shutil.rmtree(staging, ignore_errors=True)
        newest = next(iter(arrange(staging.parent).branch), None)
        left = (
            f"the newest complete checkpoint is {newest}"
            if newest
            else "there is no earlier checkpoint"
        )
        again = (
            "start the same command again with --resume auto"
            if newest
            else "start the same command again"
        )
        raise MachineError(
            f"The checkpoint of step {step} cannot be written to {staging.parent}: {refusal.what.rstrip('.').lower()}.",
            got=f"{refusal.got}\n{left}",
            fix=f"{refusal.fix}; then {again}\ntrain.save_total_limit=1 keeps fewer checkpoints",
        ) from error


@contextmanager
def loading(checkpoint: Path | None) -> Iterator[None]:
    """Around the training that goes on from `checkpoint`: what fails in its loading is the checkpoint's fault. (all ranks)

    Raises:
        CheckpointError: a file of it is damaged, of another kind, or for another model.
    """
    try:
        yield
    except Exception as error:
        is_known = isinstance(error, WikiLLMError) or isinstance(as_refusal(error), MachineError)
        is_known = (
            is_known or refused_name(error) is not None
        )  # told further out, by `only_known_classes`
        if checkpoint is None or is_known or not _is_loading(error):
            raise
        text = str(error).strip().partition("\n")[0][:300]
        raise CheckpointError(
            f"{checkpoint} cannot be loaded, although every file is as its manifest says.",
            got=f"{type(error).__name__}: {text}" if text else type(error).__name__,
            fix="--resume PATH of an older checkpoint, or the versions of torch, transformers and DeepSpeed that wrote it",
        ) from error


def check_training_state(
    checkpoint: Path, *, rank: int, world_size: int, is_deepspeed: bool
) -> None:
    """Hugging Face begins anew, in silence, with the optimizer, schedule or random state whose file is missing.

    Raises CheckpointError with the names. (all ranks, each its own files)
    """
    wanted = ["trainer_state.json", "rng_state.pth" if world_size == 1 else f"rng_state_{rank}.pth"]
    wanted += [] if is_deepspeed else ["optimizer.pt", "scheduler.pt"]
    missing = [name for name in wanted if not (checkpoint / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{checkpoint} lacks a part of the training state.",
            got=", ".join(missing),
            fix="--resume PATH of another checkpoint, or continue from the weights alone: `wikillm export`, "
            "then model.init_from",
        )


def _is_loading(error: BaseException) -> bool:
    """Was it raised while a checkpoint was read?"""
    return any(
        frame.name.startswith(_LOADERS) for frame in traceback.extract_tb(error.__traceback__)
    )
