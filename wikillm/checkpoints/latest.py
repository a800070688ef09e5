"""Which checkpoint to go on from: the newest one that verifies, never what a `latest` file claims."""

from __future__ import annotations

from pathlib import Path

from wikillm.checkpoints.layout import list_checkpoints, step_of
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError
from wikillm.core.log import warn


def latest_complete(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` whose every file is as its manifest says; None when there never was one.

    Damaged ones are passed over, each with a warning that names why; nothing is deleted.

    Raises:
        CheckpointError: there are checkpoints, and none of them is good.
    """
    damaged: list[CheckpointError] = []
    for checkpoint in list_checkpoints(folder):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            damaged.append(error)
            warn(f"passing over {checkpoint.name}: {error}")
            continue
        return checkpoint
    if damaged:
        raise CheckpointError(
            f"None of the {len(damaged)} checkpoints in {folder} is usable.",
            got="\n".join(str(error) for error in damaged),
            fix="restore the folder from a backup, or start afresh with another run.dir",
        )
    return None


def find_complete(path: Path) -> Path:
    """The checkpoint that `path` means: a checkpoint folder itself, a run directory, or its checkpoints folder.

    Raises:
        CheckpointError: nothing complete is there.
    """
    if step_of(path) is not None:
        verify(path)
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = latest_complete(folder) if folder.is_dir() else None
    if found is None:
        raise CheckpointError(
            f"There is no complete checkpoint at {path}.",
            got="the folder does not exist" if not path.exists() else f"no checkpoint-N folder below {folder}",
            fix="name a run directory (runs/NAME) or a folder like runs/NAME/checkpoints/checkpoint-200",
        )
    return found
