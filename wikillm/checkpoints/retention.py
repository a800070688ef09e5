"""Which checkpoints stay. A checkpoint disappears by one rename, so a crash never leaves half of one in the list."""

from __future__ import annotations

import shutil
from pathlib import Path

from wikillm.checkpoints.layout import DELETING, STAGING, list_checkpoints
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError
from wikillm.core.files import fsync_path, rename_durably


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed save or a killed rotation left behind. (one rank, before the first save)"""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name == STAGING or path.name.startswith(DELETING):
            shutil.rmtree(path, ignore_errors=True)


def keep_newest(folder: Path, keep: int) -> list[Path]:
    """Keep the `keep` newest checkpoints and remove the rest; returns what was removed. (one rank)

    Sizes are compared before anything goes: a damaged newest checkpoint does not count as one that is kept, so the
    last good one is never removed.
    """
    removed = []
    good = 0
    for checkpoint in list_checkpoints(folder):
        if good < keep:
            try:
                verify(checkpoint, hashes=False)
                good += 1
            except CheckpointError:
                pass  # damaged: leave it for the user to look at, and keep one more
            continue
        doomed = folder / f"{DELETING}{checkpoint.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        rename_durably(checkpoint, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        removed.append(checkpoint)
    if removed:
        fsync_path(folder)
    return removed
