"""Sorts the checkpoints of a folder into the run's current branch and abandoned checkpoints.

A run can resume from an older checkpoint and write new ones from there, so the highest step is not
always the newest. Every manifest therefore records two values:

    sequence   1 for the first checkpoint of the folder, then 2, 3, ... in the order of writing
    ancestors  the checkpoints from which it descends and that were still in the folder, nearest
               first; empty when the run began here or elsewhere

The branch of a folder is the checkpoint with the highest sequence and its ancestors. Checkpoints of
earlier versions have no sequence. They count as sequence 0, so they come first, in the order of
their steps. The values of the checkpoint written last are also in `.newest.json`, so that its
branch is still known when the checkpoint is deleted or its manifest is lost. A run that goes back
writes its own position there before it saves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wikillm.checkpoints.layout import NEWEST, checkpoint_name, list_checkpoints, step_of
from wikillm.checkpoints.manifest import has_counts, read_manifest
from wikillm.core.errors import CheckpointError
from wikillm.core.files import read_object, write_json


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The place of a checkpoint in the order in which its folder's checkpoints were written."""

    sequence: int
    step: int


@dataclass(frozen=True, slots=True)
class Ancestry:
    """A checkpoint's position and those of its ancestors, nearest first."""

    position: Position
    ancestors: tuple[Position, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Fields for the manifest, which already has the step."""
        ancestors = [{"sequence": each.sequence, "step": each.step} for each in self.ancestors]
        return {"sequence": self.position.sequence, "ancestors": ancestors}


@dataclass(frozen=True, slots=True)
class Lineage:
    """The checkpoints of a folder. A resume tries those of `branch` in order."""

    branch: tuple[Path, ...]
    abandoned: tuple[Path, ...]


def read_ancestry(checkpoint: Path) -> Ancestry:
    """Position and ancestors from the manifest.

    Raises CheckpointError if the manifest cannot be read, or if its step is not the folder's, which
    was then renamed or copied.
    """
    manifest = read_manifest(checkpoint)
    step = step_of(checkpoint)
    if step is None:
        raise CheckpointError(
            f"{checkpoint} is not named like a checkpoint.", fix="name it checkpoint-STEP"
        )
    if manifest.get("step", step) != step or checkpoint.name != checkpoint_name(step):
        raise CheckpointError(
            f"{checkpoint} is not named by its step.",
            got=f"its manifest has step {manifest.get('step', step)}",
            fix=f"if only the name was changed: {checkpoint_name(manifest.get('step', step))}",
        )
    if "sequence" in manifest:
        return _from_json(manifest)
    # Without a recorded sequence, all checkpoints with a lower step count as ancestors.
    steps = [step_of(path) or 0 for path in list_checkpoints(checkpoint.parent)]
    return Ancestry(Position(0, step), tuple(Position(0, other) for other in steps if other < step))


def _from_json(values: Mapping[str, Any]) -> Ancestry:
    ancestors = [Position(each["sequence"], each["step"]) for each in values["ancestors"]]
    return Ancestry(Position(values["sequence"], values["step"]), tuple(ancestors))


def record_newest(checkpoint: Path) -> None:
    """Record that `checkpoint` is the checkpoint written last into its folder. (one rank)"""
    _record(checkpoint.parent, read_ancestry(checkpoint))


def record_return(folder: Path, origin: Ancestry) -> None:
    """Record that the run continues from `origin`, before it saves a checkpoint. (one rank)

    Otherwise the abandoned branch would be the newest branch after a kill before the first save.
    """
    if arrange(folder).branch[:1] != (folder / checkpoint_name(origin.position.step),):
        _record(folder, next_ancestry(folder, origin.position.step, origin))


def _record(folder: Path, ancestry: Ancestry) -> None:
    write_json(folder / NEWEST, {"step": ancestry.position.step, **ancestry.to_json()})


def _recorded(folder: Path) -> Ancestry | None:
    """Ancestry of the checkpoint written last; None if it is not recorded, or not readable."""
    values = read_object(folder / NEWEST)
    try:
        return _from_json(values) if "sequence" in values and has_counts(values) else None
    except (KeyError, TypeError):
        return None


def _read_all(folder: Path) -> tuple[dict[Path, Ancestry], list[Path]]:
    """The published checkpoints of `folder` with their ancestries, and the unreadable ones."""
    known: dict[Path, Ancestry] = {}
    unreadable: list[Path] = []
    for path in list_checkpoints(folder):
        try:
            known[path] = read_ancestry(path)
        except CheckpointError:
            unreadable.append(path)
    return known, unreadable


def arrange(folder: Path) -> Lineage:
    """Sort the published checkpoints of `folder` into the current branch and abandoned ones.

    A checkpoint without a readable manifest cannot be used, but stays on the branch, so that it is
    reported. It takes the place of an ancestor with its step. Without such an ancestor it comes
    first if its step is above that of the newest checkpoint, and last otherwise.
    """
    known, unreadable = _read_all(folder)
    if not known:
        return Lineage(tuple(unreadable), ())

    newest = max(known.values(), key=lambda ancestry: ancestry.position)
    written = _recorded(folder)
    branch = _on_disk(folder, newest, known, unreadable)
    if written is not None and written.position > newest.position:
        # The checkpoint written last is gone or unreadable, or the run was killed after it went
        # back: the ancestors are the branch.
        branch = _on_disk(folder, written, known, unreadable) or branch
    step = step_of(branch[0]) or 0
    unplaced = [path for path in unreadable if path not in branch]
    above = [path for path in unplaced if (step_of(path) or 0) > step]
    below = [path for path in unplaced if path not in above]
    abandoned = _newest_first({path: known[path] for path in known if path not in branch})
    return Lineage((*above, *branch, *below), tuple(abandoned))


def _on_disk(
    folder: Path, head: Ancestry, known: Mapping[Path, Ancestry], unreadable: Sequence[Path]
) -> list[Path]:
    """`head` and its ancestors, as far as they are in the folder."""
    found: list[Path] = []
    for position in (head.position, *head.ancestors):
        path = folder / checkpoint_name(position.step)
        if path in unreadable or (path in known and known[path].position == position):
            found.append(path)
    return list(dict.fromkeys(found))


def next_ancestry(folder: Path, step: int, parent: Ancestry | None) -> Ancestry:
    """The ancestry of the checkpoint that is about to be written after `step`.

    Args:
        parent: ancestry of the checkpoint in `folder` that the run resumed from or wrote last; None
            when the run began here or elsewhere.
    """
    # Checkpoints with an unreadable manifest are ignored: they are never used.
    known, _ = _read_all(folder)
    earlier = [*known.values(), *filter(None, (parent, _recorded(folder)))]
    position = Position(max((each.position.sequence for each in earlier), default=0) + 1, step)
    if parent is None:
        return Ancestry(position)
    present = [old for old in parent.ancestors if (folder / checkpoint_name(old.step)).is_dir()]
    return Ancestry(position, (parent.position, *present))


def left_behind(folder: Path, origin: Ancestry | None) -> list[Path]:
    """The readable checkpoints that a run abandons by saving from `origin`, newest first."""
    kept = {origin.position, *origin.ancestors} if origin else set()
    known, _ = _read_all(folder)
    return _newest_first(
        {p: ancestry for p, ancestry in known.items() if ancestry.position not in kept}
    )


def _newest_first(known: dict[Path, Ancestry]) -> list[Path]:
    return sorted(known, key=lambda path: known[path].position, reverse=True)
