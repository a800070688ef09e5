"""Which checkpoints stay.

One is removed by a rename, so a crash never leaves half of one in the list.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from wikillm.checkpoints.layout import DELETING, REPLACED, STAGING
from wikillm.checkpoints.lineage import arrange, read_descent
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError
from wikillm.core.files import files_below, fsync_path, rename_durably


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed save or rotation left behind. (one rank, before the first save)

    A checkpoint that was being replaced gets its name back when the replacement was not published.
    """
    for path in _leftovers(folder):
        final = folder / path.name.removeprefix(REPLACED)
        if path.name.startswith(REPLACED) and not final.exists():
            rename_durably(path, final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _leftovers(folder: Path) -> list[Path]:
    prefixes = (DELETING, REPLACED)
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.name == STAGING or path.name.startswith(prefixes)]


def publish(staged: Path, final: Path) -> None:
    """Give a sealed checkpoint its name; one of that name, of an earlier branch, is replaced."""
    replaced = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        rename_durably(final, replaced)
    rename_durably(staged, final)
    shutil.rmtree(replaced, ignore_errors=True)


def superfluous(folder: Path, keep: int, spare: Path | None = None) -> list[Path]:
    """What `keep_newest` would remove; never `spare`.

    A checkpoint whose sizes are wrong does not count as kept, so neither the last one written nor
    the last good one is ever removed.
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
                pass  # damaged: it stays for the user to inspect, and one more is kept
        elif checkpoint != spare and _is_ours(checkpoint):
            found.append(checkpoint)
    return found


def _is_ours(checkpoint: Path) -> bool:
    """Whether the run wrote it under this name. A copy, or one without a manifest, stays."""
    try:
        read_descent(checkpoint)
    except CheckpointError:
        return False
    return True


def keep_newest(folder: Path, keep: int, spare: Path | None = None) -> list[Path]:
    """Keep `spare` and the `keep` checkpoints written last, and remove the others. (one rank)

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
    """Bytes that the next start frees before its first save: leftovers, and what exceeds `keep`."""
    doomed = [*_leftovers(folder), *superfluous(folder, keep)]
    return sum(path.stat().st_size for each in doomed for path in files_below(each))
