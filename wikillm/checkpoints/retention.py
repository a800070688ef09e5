"""Publishes checkpoints, and removes those that the retention rules do not keep.

A checkpoint is renamed before it is deleted, so a crash never leaves a partial checkpoint under its
own name.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.checkpoints.layout import DELETING, REPLACED, STAGING, step_of
from wikillm.checkpoints.lineage import arrange, read_ancestry, record_newest
from wikillm.checkpoints.manifest import read_state, verify
from wikillm.core.errors import CheckpointError
from wikillm.core.files import files_below, fsync_path, rename_durably

if TYPE_CHECKING:
    from wikillm.config.schema_train import TrainSection


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints of a run to keep. A checkpoint stays if any of the three rules keeps it.

    Attributes:
        newest: number of most recent checkpoints to keep (train.save_total_limit).
        every: keep checkpoints whose step is a multiple of this number; None for no such rule.
        best: number of checkpoints to keep with the lowest held-out loss at their own step.
    """

    newest: int
    every: int | None = None
    best: int = 0


def keep_of(train: TrainSection) -> Keep:
    """The retention rules in the section `train`."""
    return Keep(train.save_total_limit, train.keep_every_steps, train.keep_best)


def clear_leftovers(folder: Path) -> None:
    """Remove the folders of a killed save or rotation. (one rank, before the first save)

    If a checkpoint was being replaced, and the new checkpoint was not published, restore its name.
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
    """Rename a sealed checkpoint to its final name, and record it as the newest. (one rank)

    A checkpoint of an abandoned branch that has this name is replaced.
    """
    replaced = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        rename_durably(final, replaced)
    rename_durably(staged, final)
    record_newest(final)
    shutil.rmtree(replaced, ignore_errors=True)


def superfluous(folder: Path, keep: Keep, protected: Path | None = None) -> list[Path]:
    """The checkpoints that `rotate` would remove; `protected` is never among them.

    A checkpoint with wrong file sizes does not count towards `keep.newest`, so neither the last
    checkpoint written nor the last intact one is ever removed.
    """
    found = []
    good = 0
    lineage = arrange(folder)
    marked = {protected, *_every(lineage.branch, keep.every), *_best(lineage.branch, keep.best)}
    for checkpoint in (*lineage.branch, *lineage.abandoned):
        if good < keep.newest:
            # A damaged checkpoint stays for the user to inspect, and is not counted.
            good += _is_whole(checkpoint)
        # A copy under another name stays, and so does a folder without a manifest.
        elif checkpoint not in marked and _passes(read_ancestry, checkpoint):
            found.append(checkpoint)
    return found


def _every(branch: Sequence[Path], steps: int | None) -> list[Path]:
    return [path for path in branch if steps and (step_of(path) or 0) % steps == 0]


def _best(branch: Sequence[Path], count: int) -> list[Path]:
    """The `count` intact checkpoints with the lowest held-out loss; ties go to the later step."""
    if not count:
        return []
    rated = [(held_out_loss_of(path), -(step_of(path) or 0), path) for path in branch]
    ordered = [path for loss, _, path in sorted(rated) if math.isfinite(loss) and _is_whole(path)]
    return ordered[:count]


def held_out_loss_of(checkpoint: Path) -> float:
    """Held-out loss in nats per token; infinity without an evaluation at the checkpoint's step."""
    try:
        state = read_state(checkpoint)
        if state.get("held_out_step") == step_of(checkpoint):
            return float(state["held_out"]["loss"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        pass
    return math.inf


def _is_whole(checkpoint: Path) -> bool:
    """Whether every file exists with the size in the manifest."""
    return _passes(partial(verify, hashes=False), checkpoint)


def _passes(check: Callable[[Path], object], checkpoint: Path) -> bool:
    try:
        check(checkpoint)
    except CheckpointError:
        return False
    return True


def rotate(folder: Path, keep: Keep, protected: Path | None = None) -> list[Path]:
    """Remove every checkpoint that is neither `protected` nor kept by `keep`. (one rank)

    Checkpoints of abandoned branches count as the oldest. Returns the removed checkpoints.
    """
    removed = superfluous(folder, keep, protected)
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

    If it does not fit, the rotation that would follow the save runs now; the last intact
    checkpoint stays. Returns the removed checkpoints, and the bytes that are still missing.
    """
    removed: list[Path] = []
    if shutil.disk_usage(folder).free < size:
        removed = rotate(folder, _before_a_save(keep))
    return removed, max(0, size - shutil.disk_usage(folder).free)


def _before_a_save(keep: Keep) -> Keep:
    """The rules on a disk that has no room for one checkpoint more than `keep` allows."""
    return replace(keep, newest=max(1, keep.newest - 1))


def bytes_freed_at_start(folder: Path, keep: Keep) -> int:
    """Bytes that the next start can free before its first save.

    They are those of leftovers, and of checkpoints that `make_room` would remove.
    """
    deleting = [*_leftovers(folder), *superfluous(folder, _before_a_save(keep))]
    return sum(path.stat().st_size for each in deleting for path in files_below(each))
