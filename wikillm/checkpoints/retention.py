"""Which checkpoints stay: the newest, one every so many steps, and the best by held-out loss.

One is removed by a rename, so a crash never leaves half of one in the list.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from wikillm.checkpoints.layout import DELETING, REPLACED, STAGING, step_of
from wikillm.checkpoints.lineage import arrange, read_ancestry
from wikillm.checkpoints.manifest import read_state, verify
from wikillm.config.schema import TrainSection
from wikillm.core.errors import CheckpointError
from wikillm.core.files import files_below, fsync_path, rename_durably


@dataclass(frozen=True, slots=True)
class Keep:
    """What stays of a run's checkpoints.

    Attributes:
        newest: so many that were written last; train.save_total_limit.
        every: also those of multiples of so many steps, permanently; None for none.
        best: also so many with the lowest held-out loss of their own step.
    """

    newest: int
    every: int | None = None
    best: int = 0


def keep_of(train: TrainSection) -> Keep:
    """The checkpoints that a run keeps."""
    return Keep(train.save_total_limit, train.keep_every_steps, train.keep_best)


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


def superfluous(folder: Path, keep: Keep, spare: Path | None = None) -> list[Path]:
    """What `keep_newest` would remove; never `spare`.

    A checkpoint whose sizes are wrong does not count as kept, so neither the last one written nor
    the last good one is ever removed.
    """
    found = []
    good = 0
    lineage = arrange(folder)
    marked = {spare, *_every(lineage.branch, keep.every), *_best(lineage.branch, keep.best)}
    for checkpoint in (*lineage.branch, *lineage.abandoned):
        if good < keep.newest:
            # A damaged one stays for the user to inspect, and one more is kept.
            good += _is_whole(checkpoint)
        # A copy under another name, or one without a manifest, stays.
        elif checkpoint not in marked and _passes(read_ancestry, checkpoint):
            found.append(checkpoint)
    return found


def _every(branch: Sequence[Path], steps: int | None) -> list[Path]:
    return [path for path in branch if steps and (step_of(path) or 0) % steps == 0]


def _best(branch: Sequence[Path], count: int) -> list[Path]:
    """The `count` whole checkpoints with the lowest held-out loss; of equal ones the later."""
    if not count:
        return []
    rated = [(held_out_loss_of(path), -(step_of(path) or 0), path) for path in branch]
    ordered = [path for loss, _, path in sorted(rated) if math.isfinite(loss) and _is_whole(path)]
    return ordered[:count]


def held_out_loss_of(checkpoint: Path) -> float:
    """In nats per token; infinity where no evaluation was made at the checkpoint's own step."""
    try:
        state = read_state(checkpoint)
        if state.get("held_out_step") == step_of(checkpoint):
            return float(state["held_out"]["loss"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        pass
    return math.inf


def _is_whole(checkpoint: Path) -> bool:
    """Whether every file is there in its size."""
    return _passes(partial(verify, hashes=False), checkpoint)


def _passes(check: Callable[[Path], object], checkpoint: Path) -> bool:
    try:
        check(checkpoint)
    except CheckpointError:
        return False
    return True


def keep_newest(folder: Path, keep: Keep, spare: Path | None = None) -> list[Path]:
    """Keep `spare` and what `keep` says, and remove the others. (one rank)

    Abandoned ones go first. Returns what was removed.
    """
    removed = superfluous(folder, keep, spare)
    for checkpoint in removed:
        deleting = folder / f"{DELETING}{checkpoint.name}"
        shutil.rmtree(deleting, ignore_errors=True)
        rename_durably(checkpoint, deleting)
        shutil.rmtree(deleting, ignore_errors=True)
    if removed:
        fsync_path(folder)
    return removed


def make_room(folder: Path, size: int, keep: Keep) -> tuple[list[Path], int]:
    """Make room for a checkpoint of `size` bytes that is about to be written. (one rank)

    Where it does not fit, what the rotation after it would remove is removed now; the last good one
    stays. Returns what was removed, and the bytes that are still missing.
    """
    removed: list[Path] = []
    if shutil.disk_usage(folder).free < size:
        removed = keep_newest(folder, replace(keep, newest=max(1, keep.newest - 1)))
    return removed, max(0, size - shutil.disk_usage(folder).free)


def room_to_come(folder: Path, keep: Keep) -> int:
    """Bytes that the next start frees before its first save: leftovers, and what exceeds `keep`."""
    deleting = [*_leftovers(folder), *superfluous(folder, keep)]
    return sum(path.stat().st_size for each in deleting for path in files_below(each))
