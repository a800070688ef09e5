"""Finds the checkpoint to resume from: the newest, or its nearest ancestor that verifies.

The newest checkpoint is the one written last (see `lineage`), which need not have the highest step.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wikillm.checkpoints.layout import list_checkpoints, step_of
from wikillm.checkpoints.lineage import arrange
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError
from wikillm.core.log import warn

Verify = Callable[[Path], Any]
"""Raises CheckpointError for a damaged checkpoint: `verify`, or a check shared by all ranks."""


def latest_complete(folder: Path, check: Verify = verify, *, quiet: bool = False) -> Path | None:
    """The last checkpoint written into `folder` that verifies; None without any checkpoint.

    Each damaged checkpoint of the current branch is skipped with a warning that gives the reason.
    Abandoned checkpoints are named in warnings, unless `quiet`, and never used. Nothing is deleted.

    Raises:
        CheckpointError: every checkpoint of the current branch is damaged.
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
        for abandoned in () if quiet else lineage.abandoned:
            warn(
                f"skipping {abandoned.name}: it is abandoned; "
                "the run went back to an earlier checkpoint since"
            )
        return checkpoint
    if damaged:
        names = ", ".join(path.name for path in lineage.abandoned)
        raise CheckpointError(
            f"None of the {len(damaged)} checkpoints of the current branch in {folder} is usable.",
            got="\n".join(map(str, damaged)),
            fix="restore the folder from a backup, or start again with another run.dir"
            + (f"\nor resume from an abandoned checkpoint: {names}" if names else ""),
        )
    return None


def find_complete(path: Path, check: Verify = verify, *, quiet: bool = False) -> Path:
    """The verified checkpoint at `path`, or the last sound checkpoint below that folder.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    if step_of(path) is not None:
        if not path.exists():
            present = ", ".join(each.name for each in list_checkpoints(path.parent)) or "none"
            raise CheckpointError(
                f"There is no checkpoint at {path}.",
                got=f"in {path.parent}: {present}",
                fix="name a listed checkpoint, or the run directory for its newest checkpoint",
            )
        check(path)
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    latest = latest_complete(folder, check, quiet=quiet) if folder.is_dir() else None
    if latest is None:
        exists = path.exists()
        raise CheckpointError(
            f"There is no complete checkpoint at {path}.",
            got=f"no checkpoint-N folder below {folder}" if exists else "the folder does not exist",
            fix="wait for the run's first save, or ask for one: "
            f"touch {shlex.quote(str(path / 'save'))}\n"
            "if the run has ended: start it again with --resume auto"
            if folder != path
            else "name a run directory (runs/NAME) or a folder like "
            "runs/NAME/checkpoints/checkpoint-200",
        )
    return latest
