"""The curves of a run over tokens, smoothed and thinned, its loss spikes and its resumes.

Points are (tokens, value). A value that is not finite makes a gap in the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wikillm.observe import names
from wikillm.report.run_files import RunFiles, as_dict, as_dicts, number

Point = tuple[float, float | None]
MAX_POINTS = 800
"""Most points of a drawn curve; each group of points keeps its lowest and its highest."""
DOCUMENTS = 4
"""Most documents listed for a spike."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A loss spike.

    Attributes:
        median: median of the losses before it.
        action: what the run did about it.
        documents: documents of its worst micro-batch.
        is_current: False if the step was trained again later.
    """

    step: int
    tokens: float
    loss: float
    median: float | None
    action: str
    documents: tuple[str, ...]
    is_current: bool


def series(run: RunFiles, name: str) -> list[Point]:
    """The values with this name in metrics.jsonl, over tokens."""
    return [
        (number(record, names.TOKENS) or 0.0, number(record, name))
        for record in run.metrics
        if name in record
    ]


def evaluations(run: RunFiles, name: str) -> list[Point]:
    """The values with this name in evaluations, over tokens, which follow from the steps."""
    found = [event for event in run.current if event[names.KIND] == names.EVAL and name in event]
    return [(run.tokens_at(event[names.STEP]), number(event, name)) for event in found]


def smooth(points: Sequence[Point]) -> list[Point]:
    """An exponential mean over a fiftieth of the points (at least 2), with bias correction."""
    keep = 1 - 1 / max(2.0, len(points) / 50)
    total = 0.0
    weight = 0.0
    out: list[Point] = []
    for x, value in points:
        if value is not None:
            total = keep * total + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        out.append((x, total / weight if weight else None))
    return out


def thin(points: Sequence[Point], max_points: int) -> list[Point]:
    """At most `max_points` points. Of each group of points the lowest and the highest are kept, or
    a gap if the group has no value."""
    if len(points) <= max_points:
        return list(points)
    out: list[Point] = []
    groups = max_points // 2
    for group in range(groups):
        part = points[len(points) * group // groups : len(points) * (group + 1) // groups]
        known = [(value, i) for i, (_, value) in enumerate(part) if value is not None]
        chosen = sorted({min(known)[1], max(known)[1]}) if known else [0]
        out += [part[i] for i in chosen]
    return out


def spikes(run: RunFiles) -> list[Spike]:
    """All loss spikes that the run detected (see `train.spikes`), including those after which it
    went back to a checkpoint."""
    kept = {id(event) for event in run.current}
    out: list[Spike] = []
    for event in run.events:
        loss = number(event, names.LOSS)
        step = event.get("worst_step")
        if event[names.KIND] != names.SPIKE or loss is None or type(step) is not int:
            continue
        batch = as_dict(event.get("worst_micro_batch"))
        documents = [
            f"{document.get('source')}: byte {document.get('offset')}"
            for document in as_dicts(batch.get("documents"))[:DOCUMENTS]
        ]
        out.append(
            Spike(
                step=step,
                tokens=run.tokens_at(step),
                loss=loss,
                median=number(event, "median"),
                action=str(event.get("action")),
                documents=tuple(documents),
                is_current=id(event) in kept,
            )
        )
    return out


def resumes(run: RunFiles) -> list[tuple[float, str]]:
    """(tokens, label) of each position where the run resumed."""
    out: list[tuple[float, str]] = []
    segment: Any = None
    for record in run.metrics:
        own = record[names.SEGMENT]
        if segment is not None and own != segment:
            label = f"resumed before step {record[names.STEP]:,} (start {own + 1})"
            out.append((number(record, names.TOKENS) or 0.0, label))
        segment = own
    return out
