"""Which checkpoint to resume from: the last one written that verifies, or its nearest such
ancestor.

Neither what a `latest` file claims nor the highest step decides: see `lineage`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wikillm.checkpoints.layout import list_checkpoints, step_of
from wikillm.checkpoints.lineage import arrange
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError
from wikillm.core.log import warn

Verify = Callable[[Path], Any]
"""Raises CheckpointError for a damaged checkpoint: `verify`, or one that all ranks share."""


def latest_complete(folder: Path, check: Verify = verify) -> Path | None:
    """The last checkpoint written into `folder` that verifies; None when there never was one.

    Damaged ones on the branch are skipped, each with a warning that says why. Abandoned ones are
    named and never taken. Nothing is deleted.

    Raises:
        CheckpointError: there are checkpoints, and none of the current branch is good.
    """
    lineage = arrange(folder)
    damaged: list[CheckpointError] = []
    for checkpoint in lineage.branch:
        try:
            check(checkpoint)
        except CheckpointError as error:
            damaged.append(error)
            warn(f"skipping {checkpoint.name}: {error}")
            continue
        for abandoned in lineage.abandoned:
            warn(
                f"skipping {abandoned.name}: it is abandoned; "
                f"the run went back and wrote {checkpoint.name} later"
            )
        return checkpoint
    if damaged:
        others = ", ".join(path.name for path in lineage.abandoned)
        raise CheckpointError(
            f"None of the {len(damaged)} checkpoints of the current branch in {folder} is usable.",
            got="\n".join(map(str, damaged)),
            fix="restore the folder from a backup, or start again with another run.dir"
            + (f"\nor name one that the run has abandoned: {others}" if others else ""),
        )
    return None


def find_complete(path: Path, check: Verify = verify) -> Path:
    """The checkpoint that `path` means: itself, or the last good one of a run or its checkpoints.

    Raises:
        CheckpointError: nothing complete is there.
    """
    if step_of(path) is not None:
        if not path.exists():
            found = ", ".join(each.name for each in list_checkpoints(path.parent)) or "none"
            raise CheckpointError(
                f"There is no checkpoint at {path}.",
                got=f"in {path.parent}: {found}",
                fix="name one of these, or the run directory for the last one written",
            )
        check(path)
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    latest = latest_complete(folder, check) if folder.is_dir() else None
    if latest is None:
        exists = path.exists()
        raise CheckpointError(
            f"There is no complete checkpoint at {path}.",
            got=f"no checkpoint-N folder below {folder}" if exists else "the folder does not exist",
            fix="name a run directory (runs/NAME) or a folder like "
            "runs/NAME/checkpoints/checkpoint-200",
        )
    return latest
