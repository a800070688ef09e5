"""Which checkpoints stay. A checkpoint disappears by one rename, so a crash never leaves half of one in the list."""

from __future__ import annotations

import shutil
from pathlib import Path

from wikillm.checkpoints.layout import DELETING, REPLACED, STAGING
from wikillm.checkpoints.lineage import arrange, read_descent
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError
from wikillm.core.files import files_below, fsync_path, rename_durably


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed save or a killed rotation left behind. (one rank, before the first save)

    A checkpoint that was to be replaced comes back when its replacement did not get its name.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if (
            path.name.startswith(REPLACED)
            and not (final := folder / path.name.removeprefix(REPLACED)).exists()
        ):
            rename_durably(path, final)
        elif path.name == STAGING or path.name.startswith((DELETING, REPLACED)):
            shutil.rmtree(path, ignore_errors=True)


def publish(staged: Path, final: Path) -> None:
    """Give a sealed checkpoint its name. One of that name, of an earlier branch, makes way. (one rank)"""
    replaced = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        rename_durably(final, replaced)
    rename_durably(staged, final)
    shutil.rmtree(replaced, ignore_errors=True)


def superfluous(folder: Path, keep: int, spare: Path | None = None) -> list[Path]:
    """What `keep_newest` would remove; `spare` is never among it. Sizes are compared before anything goes: a damaged checkpoint does not count as one that is
    kept, so neither the last one written nor the last good one is ever removed.
    """
    found = []
    good = 0
    lineage = arrange(folder)
    for checkpoint in (*lineage.branch, *lineage.abandoned):
        if good < keep:
            try:
                verify(checkpoint, hashes=False)
                good += 1
            except CheckpointError:
                pass  # damaged: leave it for the user to look at, and keep one more
        elif checkpoint != spare and _is_ours(checkpoint):
            found.append(checkpoint)
    return found


def _is_ours(checkpoint: Path) -> bool:
    """Whether the run wrote it under this name. A copy of the user's, or one without a manifest, is not removed."""
    try:
        read_descent(checkpoint)
    except CheckpointError:
        return False
    return True


def keep_newest(folder: Path, keep: int, spare: Path | None = None) -> list[Path]:
    """Keep the `keep` checkpoints written last, and `spare`, and remove the rest. (one rank)

    Abandoned ones go first. Returns what was removed.
    """
    removed = superfluous(folder, keep, spare)
    for checkpoint in removed:
        doomed = folder / f"{DELETING}{checkpoint.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        rename_durably(checkpoint, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    if removed:
        fsync_path(folder)
    return removed


def room_to_come(folder: Path, keep: int) -> int:
    """Bytes that the next start makes free before its first save: leftovers, and what a lower `keep` removes."""
    if not folder.is_dir():
        return 0
    leftovers = [
        p for p in folder.iterdir() if p.name == STAGING or p.name.startswith((DELETING, REPLACED))
    ]
    going = [*leftovers, *superfluous(folder, keep)]
    return sum(path.stat().st_size for place in going for path in files_below(place))
