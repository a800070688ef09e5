"""Errors while a checkpoint is written or read: the machine's fault, or a damaged file.

A failed save removes its staged files, so that they take no room at the next start, and its error
names the newest complete checkpoint. A file that does not load although its manifest verifies (the
manifest was rewritten, or another version wrote the file) raises a `CheckpointError`.
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
from wikillm.core.world import World
from wikillm.models.unpickle import refused_name

_LOADERS = ("_load_", "load_checkpoint", "deepspeed_load_", "load_from_json", "restore")
"""Prefixes of the functions of WikiLLM, transformers and DeepSpeed that read a checkpoint."""


@contextmanager
def saving(staging: Path, step: int) -> Iterator[None]:
    """Wraps the code that writes the checkpoint of `step` into `staging`. (any rank)

    Raises:
        MachineError: the disk is full, read-only or failing. The staged files are removed.
    """
    try:
        yield
    except Exception as error:
        refusal = as_refusal(error)
        if not isinstance(refusal, MachineError) or isinstance(error, MachineError):
            raise
        # Other ranks may still write there, but this checkpoint cannot become complete any more.
        shutil.rmtree(staging, ignore_errors=True)
        newest = next(iter(arrange(staging.parent).branch), None)
        earlier = "there is no earlier checkpoint"
        again = "start the same command again"
        if newest is not None:
            earlier = f"the newest complete checkpoint is {newest}"
            again += " with --resume auto"
        reason = refusal.what.rstrip(".").lower()
        raise MachineError(
            f"The checkpoint of step {step} cannot be written to {staging.parent}: {reason}.",
            got=f"{refusal.got}\n{earlier}",
            fix=f"{refusal.fix}; then {again}\ntrain.save_total_limit=1 keeps fewer checkpoints",
        ) from error


@contextmanager
def loading(checkpoint: Path | None) -> Iterator[None]:
    """Wraps the training that resumes from `checkpoint`. (all ranks)

    Raises:
        CheckpointError: a file is damaged, of another format, or for another model.
    """
    try:
        yield
    except Exception as error:
        # A refused name in a pickle is reported by `only_known_classes`.
        is_known = isinstance(error, WikiLLMError) or isinstance(as_refusal(error), MachineError)
        is_known = is_known or refused_name(error) is not None
        if checkpoint is None or is_known or not _is_loading(error):
            raise
        text = str(error).strip().partition("\n")[0][:300]
        raise CheckpointError(
            f"{checkpoint} cannot be loaded, although every file is as its manifest says.",
            got=f"{type(error).__name__}: {text}" if text else type(error).__name__,
            fix="resume from an older checkpoint: --resume PATH; or install the versions of torch, "
            "transformers and DeepSpeed that wrote this one",
        ) from error


def check_training_state(checkpoint: Path, world: World, *, is_deepspeed: bool) -> None:
    """Check the files without which Hugging Face would silently reset a part of the state.

    The files hold the optimizer, the schedule and the random state. Raises CheckpointError, which
    names missing files. (all ranks, each its own files)
    """
    random_state = "rng_state.pth" if world.size == 1 else f"rng_state_{world.rank}.pth"
    wanted = ["trainer_state.json", random_state]
    wanted += [] if is_deepspeed else ["optimizer.pt", "scheduler.pt"]
    missing = [name for name in wanted if not (checkpoint / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{checkpoint} lacks a part of the training state.",
            got=", ".join(missing),
            fix="--resume PATH of another checkpoint, or continue from the weights alone: "
            "`wikillm export`, then model.init_from",
        )


def _is_loading(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name.startswith(_LOADERS) for frame in frames)
