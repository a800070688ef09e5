"""The curves of a run: what is drawn over tokens, smoothed and thinned, and where the loss spikes.

Points are (tokens, value). A value that was not finite is a gap.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from wikillm.observe import names
from wikillm.report.run_files import RunFiles, number

Point = tuple[float, float | None]
MOST_POINTS = 800
"""Of a drawn curve; each group of points keeps its lowest and its highest."""
SPIKE_WINDOW = 32
SPIKE_DEVIATIONS = 8.0
SPIKE_LEAST = 0.05
"""A spike is above the median of the 32 records before it by 8 of their median deviations, and by
5 % of that median."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A record whose loss stands out, or was not finite: then `value` is None.

    `loss` is the text of it, `usual` the median before.
    """

    step: int
    tokens: float
    value: float | None
    loss: str
    usual: float | None


def series(run: RunFiles, name: str) -> list[Point]:
    """The values of metrics.jsonl with this name, over tokens."""
    return [
        (number(record, names.TOKENS) or 0.0, number(record, name))
        for record in run.metrics
        if name in record
    ]


def evaluations(run: RunFiles, name: str) -> list[Point]:
    """The values of evaluations with this name. Their tokens follow from their steps."""
    steps = [record[names.STEP] for record in run.metrics]
    tokens = [number(record, names.TOKENS) or 0.0 for record in run.metrics]
    found = [event for event in run.current if event[names.KIND] == names.EVAL and name in event]
    return [(tokens_at(event[names.STEP], steps, tokens), number(event, name)) for event in found]


def tokens_at(step: int, steps: Sequence[int], tokens: Sequence[float]) -> float:
    """Tokens trained on at `step`, between logging steps by interpolation."""
    after = bisect_left(steps, step)
    if after == len(steps):
        return tokens[-1] if tokens else 0.0
    before_step = steps[after - 1] if after else 0
    before = tokens[after - 1] if after else 0.0
    share = (step - before_step) / max(1, steps[after] - before_step)
    return before + share * (tokens[after] - before)


def smooth(points: Sequence[Point]) -> list[Point]:
    """An exponential mean over a fiftieth of the records (at least 2), without the bias to zero."""
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


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: of each group the lowest and the highest, or its gap."""
    if len(points) <= most:
        return list(points)
    out: list[Point] = []
    groups = most // 2
    for group in range(groups):
        part = points[len(points) * group // groups : len(points) * (group + 1) // groups]
        known = [(value, i) for i, (_, value) in enumerate(part) if value is not None]
        chosen = sorted({min(known)[1], max(known)[1]}) if known else [0]
        out += [part[i] for i in chosen]
    return out


def spikes(run: RunFiles) -> list[Spike]:
    """Records whose loss stands out against those before it, and losses that were not finite."""
    before: deque[float] = deque()
    ordered: list[float] = []  # the same values, for their median
    out: list[Spike] = []
    for record in run.metrics:
        if names.LOSS not in record:
            continue
        loss = number(record, names.LOSS)
        tokens = number(record, names.TOKENS) or 0.0
        is_full = len(before) == SPIKE_WINDOW
        usual = median(ordered[SPIKE_WINDOW // 2 - 1 : SPIKE_WINDOW // 2 + 1]) if is_full else None
        if loss is None:
            odd = record.get(names.NONFINITE)
            shown = str(odd.get(names.LOSS)) if isinstance(odd, dict) else "not finite"
            out.append(Spike(record[names.STEP], tokens, None, shown, usual))
            continue
        if usual is not None and loss - usual > SPIKE_LEAST * abs(usual):
            spread = median(abs(value - usual) for value in before)
            if loss - usual > SPIKE_DEVIATIONS * spread:
                out.append(Spike(record[names.STEP], tokens, loss, f"{loss:.4f}", usual))
        if is_full:
            ordered.remove(before.popleft())
        before.append(loss)
        insort(ordered, loss)
    return out


def resumes(run: RunFiles) -> list[tuple[float, str]]:
    """(tokens, label) of each place where a later segment goes on."""
    out: list[tuple[float, str]] = []
    segment: Any = None
    for record in run.metrics:
        own = record[names.SEGMENT]
        if segment is not None and own != segment:
            label = f"resumed before step {record[names.STEP]:,} (start {own + 1})"
            out.append((number(record, names.TOKENS) or 0.0, label))
        segment = own
    return out
