"""The starts of a run: how each began and ended, steps trained twice, hours, energy and cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wikillm.core.errors import ExitCode
from wikillm.observe import names
from wikillm.report.run_files import RunFiles, number

JOULES_PER_KWH = 3.6e6
_ENDS = {int(code): code.name.lower() for code in ExitCode}


@dataclass(frozen=True, slots=True)
class RunStart:
    """One start of a run.

    Attributes:
        began: Unix time of the first record.
        seconds: time from the first record to the last.
        ranks: number of processes; None if the run did not record it.
        repeated: number of steps (at least) that the next start trained again.
        ended: how the start ended, with the reason of an error.
    """

    segment: int
    began: float | None
    seconds: float
    ranks: int | None
    first_step: int | None
    last_step: int | None
    repeated: int
    ended: str


@dataclass(frozen=True, slots=True)
class Effort:
    """The time, energy and cost of a run. A field is None if it is unknown.

    Attributes:
        hours: sum over the starts of the time from first to last record.
        device_hours: the sum with each start's time multiplied by its number of ranks.
        train_hours: time in optimizer steps alone.
        kwh: energy of the GPUs, if they report it.
        cost: device_hours times the price.
    """

    hours: float
    device_hours: float
    train_hours: float | None
    kwh: float | None
    cost: float | None


def starts_of(run: RunFiles) -> list[RunStart]:
    """All starts of a run, in order."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for record in [*run.events, *run.records]:
        segment = record.get(names.SEGMENT)
        if type(segment) is int:
            groups.setdefault(segment, []).append(record)
    starts: list[RunStart] = []
    following: int | None = None  # the first step that the next start logged
    for segment, records in sorted(groups.items(), reverse=True):
        is_last = not starts
        starts.append(_start(segment, records, following, is_last=is_last, ended=run.exit))
        following = starts[-1].first_step or following
    return starts[::-1]


def effort_of(run: RunFiles, starts: Sequence[RunStart], price: float | None) -> Effort:
    """Compute hours, energy and cost. `price` is per device-hour."""
    planned_ranks = int(number(run.plan, names.WORLD_SIZE) or 1)
    seconds = sum(start.seconds for start in starts)
    device_hours = sum(start.seconds * (start.ranks or planned_ranks) for start in starts) / 3600
    trained = number(run.last, names.TRAIN_SECONDS)
    joules = sum(_joules(run, start) * (start.ranks or planned_ranks) for start in starts)
    return Effort(
        hours=seconds / 3600,
        device_hours=device_hours,
        train_hours=None if trained is None else trained / 3600,
        kwh=joules / JOULES_PER_KWH if joules else None,
        cost=None if price is None else price * device_hours,
    )


def as_time(unix: float) -> str:
    """A Unix time in this machine's time zone: 2026-11-27 21:16:02."""
    if not 0 <= unix < 1e11:
        return "unknown"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def _joules(run: RunFiles, start: RunStart) -> float:
    """Energy of rank 0's device in one start. Each start counts from 0."""
    own = [record for record in run.records if record.get(names.SEGMENT) == start.segment]
    return max((number(record, names.ENERGY_JOULES) or 0.0 for record in own), default=0.0)


def _start(
    segment: int,
    records: list[dict[str, Any]],
    following: int | None,
    *,
    is_last: bool,
    ended: dict[str, Any],
) -> RunStart:
    times = [at for record in records if (at := number(record, names.TIME)) is not None]
    logged = [record for record in records if names.KIND not in record]
    steps = [step for record in logged if type(step := record.get(names.STEP)) is int]
    begin = next((r for r in records if r.get(names.KIND) == names.START), {})
    finish = next((r for r in records if r.get(names.KIND) == names.FINISH), None)
    ranks = number(begin, names.WORLD_SIZE)
    ending = "no end recorded: it was killed"
    if finish is not None:
        code = finish.get("exit_code")
        error = finish.get("error")
        name = _ENDS.get(code, "ended") if isinstance(code, int) else "ended"
        ending = f"{name}: {error}" if error else name
    elif is_last and not ended:
        ending = "no end recorded: it is running, or was killed"
    return RunStart(
        segment=segment,
        began=min(times, default=None),
        seconds=max(times) - min(times) if times else 0.0,
        ranks=None if ranks is None else int(ranks),
        first_step=min(steps, default=None),
        last_step=max(steps, default=None),
        repeated=max(0, max(steps) + 1 - following) if steps and following else 0,
        ended=ending,
    )
