"""Which checkpoint was written after which: the branch a run is on, and the checkpoints it has abandoned.

A run can go back to an older checkpoint and write new ones from there, so the highest step is not always the newest.
Every manifest therefore records two facts about the folder it was written into:

    sequence   1 for the first checkpoint of the folder, and one more for each later one
    ancestors  the checkpoints it goes back to, nearest first: the first is its parent, the others are those that were
               still in the folder when it was written; empty when the run began here or elsewhere

The branch of a folder is the checkpoint with the highest sequence and its ancestors. Checkpoints of earlier versions of
WikiLLM have no sequence: they count as 0 and come first, in the order of their steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wikillm.checkpoints.layout import checkpoint_name, list_checkpoints, step_of
from wikillm.checkpoints.manifest import read_manifest
from wikillm.core.errors import CheckpointError


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """The position of a checkpoint among all that were ever written into its folder."""

    sequence: int
    step: int


@dataclass(frozen=True, slots=True)
class Descent:
    """A checkpoint's place and the places of its ancestors, nearest first."""

    place: Place
    ancestors: tuple[Place, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the manifest; the step is there already."""
        ancestors = [{"sequence": place.sequence, "step": place.step} for place in self.ancestors]
        return {"sequence": self.place.sequence, "ancestors": ancestors}


@dataclass(frozen=True, slots=True)
class Lineage:
    """The checkpoints of a folder. `branch`: the last one written and its ancestors, in the order to try them."""

    branch: tuple[Path, ...]
    abandoned: tuple[Path, ...]


def read_descent(checkpoint: Path) -> Descent:
    """Place and ancestors as the manifest records them.

    Raises CheckpointError when it cannot be read, or is that of another step: the folder was renamed or copied.
    """
    manifest = read_manifest(checkpoint)
    step = step_of(checkpoint)
    if step is None:
        raise CheckpointError(
            f"{checkpoint} is not named like a checkpoint.", fix="name it checkpoint-STEP"
        )
    if manifest.get("step", step) != step:
        raise CheckpointError(
            f"{checkpoint} is not named by its step.",
            got=f"its manifest has step {manifest['step']}",
        )
    if "sequence" in manifest:
        ancestors = tuple(
            Place(entry["sequence"], entry["step"]) for entry in manifest["ancestors"]
        )
        return Descent(Place(manifest["sequence"], step), ancestors)
    # Written before sequences were recorded: the ancestors are the older ones of the same kind.
    older = [
        other
        for path in list_checkpoints(checkpoint.parent)
        if (other := step_of(path) or 0) < step
    ]
    return Descent(Place(0, step), tuple(Place(0, other) for other in older))


def arrange(folder: Path) -> Lineage:
    """Sort the published checkpoints of `folder` into the current branch and abandoned ones.

    One without a readable manifest is on the branch: where an ancestor has its name, otherwise first if its step is
    above the last one written, else last. It cannot be used; in that position it is reported.
    """
    known: dict[Path, Descent] = {}
    unreadable: list[Path] = []
    for path in list_checkpoints(folder):
        try:
            known[path] = read_descent(path)
        except CheckpointError:
            unreadable.append(path)
    if not known:
        return Lineage(tuple(unreadable), ())

    head = max(known, key=lambda path: known[path].place)
    branch = [head]
    for place in known[head].ancestors:
        path = folder / checkpoint_name(place.step)
        if path in unreadable or (path in known and known[path].place == place):
            branch.append(path)
    others = [path for path in unreadable if path not in branch]
    above = [path for path in others if (step_of(path) or 0) > known[head].place.step]
    below = [path for path in others if path not in above]
    abandoned = sorted(
        (path for path in known if path not in branch),
        key=lambda path: known[path].place,
        reverse=True,
    )
    return Lineage((*above, *branch, *below), tuple(abandoned))


def next_descent(folder: Path, step: int, parent: Descent | None) -> Descent:
    """The descent of the checkpoint that is about to be written after `step`.

    Args:
        parent: of the checkpoint in `folder` that the run has gone on from; None when it began here or elsewhere.
    """
    highest = parent.place.sequence if parent else 0
    for path in list_checkpoints(folder):
        try:
            highest = max(highest, read_descent(path).place.sequence)
        except CheckpointError:
            continue  # damaged: its number is not known, and it will not be used
    if parent is None:
        return Descent(Place(highest + 1, step))
    standing = [
        place for place in parent.ancestors if (folder / checkpoint_name(place.step)).is_dir()
    ]
    return Descent(Place(highest + 1, step), (parent.place, *standing))


def left_behind(folder: Path, origin: Descent | None) -> list[Path]:
    """The readable checkpoints that are abandoned once the run has written one from `origin`, newest first."""
    kept = {origin.place, *origin.ancestors} if origin else set()
    found = {}
    for path in list_checkpoints(folder):
        try:
            place = read_descent(path).place
        except CheckpointError:
            continue
        if place not in kept:
            found[path] = place
    return sorted(found, key=lambda path: found[path], reverse=True)
