"""Which checkpoint to go on from: the last one written that verifies, or its nearest ancestor that does.

Never what a `latest` file claims, and not the highest step either: see `lineage`.
"""

from __future__ import annotations

from pathlib import Path

from wikillm.checkpoints.layout import list_checkpoints, step_of
from wikillm.checkpoints.lineage import Lineage, arrange
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError
from wikillm.core.log import warn


def latest_complete(folder: Path) -> Path | None:
    """The last checkpoint written into `folder` whose every file is as its manifest says; None when there never was one.

    Damaged ones are passed over along the lineage, each with a warning that names why. Checkpoints of a branch that the
    run has abandoned are named, and never taken. Nothing is deleted.

    Raises:
        CheckpointError: there are checkpoints, and none of the current branch is good.
    """
    lineage = arrange(folder)
    damaged: list[CheckpointError] = []
    for checkpoint in lineage.branch:
        try:
            verify(checkpoint)
        except CheckpointError as error:
            damaged.append(error)
            warn(f"passing over {checkpoint.name}: {error}")
            continue
        for abandoned in lineage.abandoned:
            warn(
                f"passing over {abandoned.name}: it is abandoned; the run went back and wrote {checkpoint.name} later"
            )
        return checkpoint
    if damaged:
        raise _none_usable(folder, lineage, damaged)
    return None


def _none_usable(folder: Path, lineage: Lineage, damaged: list[CheckpointError]) -> CheckpointError:
    """What to say when the current branch has no good checkpoint; a good abandoned one is offered by name."""
    got = "\n".join(str(error) for error in damaged)
    for abandoned in lineage.abandoned:
        try:
            verify(abandoned)
        except CheckpointError:
            continue
        return CheckpointError(
            f"None of the {len(damaged)} checkpoints of the current branch in {folder} is usable.",
            got=f"{got}\n{abandoned.name} is good, but of a branch that the run has abandoned",
            fix=f"restore the folder from a backup, or name that one: {abandoned}",
        )
    return CheckpointError(
        f"None of the {len(damaged)} checkpoints in {folder} is usable.",
        got=got,
        fix="restore the folder from a backup, or start afresh with another run.dir",
    )


def find_complete(path: Path) -> Path:
    """The checkpoint that `path` means: a checkpoint folder itself, a run directory, or its checkpoints folder.

    Raises:
        CheckpointError: nothing complete is there.
    """
    if step_of(path) is not None:
        if not path.exists():
            there = ", ".join(found.name for found in list_checkpoints(path.parent)) or "none"
            raise CheckpointError(
                f"There is no checkpoint at {path}.",
                got=f"in {path.parent}: {there}",
                fix="name one of these, or the run directory for the last one written",
            )
        verify(path)
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = latest_complete(folder) if folder.is_dir() else None
    if found is None:
        raise CheckpointError(
            f"There is no complete checkpoint at {path}.",
            got="the folder does not exist"
            if not path.exists()
            else f"no checkpoint-N folder below {folder}",
            fix="name a run directory (runs/NAME) or a folder like runs/NAME/checkpoints/checkpoint-200",
        )
    return found
