"""Compares predictions with measurements: RUN/outcome.json of finished runs, and a table of runs.

An outcome is one JSON object: `setup` describes the run; `predicted` and `measured` each have
`memory_bytes` (of the rank with the highest peak) and `tokens_per_second` (over all ranks;
predicted only for a calibrated machine or a GPU in the planner's list). Errors are
(predicted - measured) / measured: a positive error of the memory means too cautious.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wikillm.core.files import read_regular
from wikillm.core.units import format_count, format_size

FILE_NAME = "outcome.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's memory in bytes and speed in tokens/s; None if not predicted or not measured."""

    run: str
    setup: dict[str, Any]
    memory: tuple[int | None, int | None]  # predicted, measured
    speed: tuple[float | None, float | None]

    @property
    def memory_error(self) -> float | None:
        return _error(*self.memory)

    @property
    def speed_error(self) -> float | None:
        return _error(*self.speed)


def find_outcomes(places: Iterable[Path]) -> tuple[list[Outcome], list[Path]]:
    """Outcomes of these run directories, or of those inside these folders; and unreadable files."""
    found: list[Outcome] = []
    broken: list[Path] = []
    for place in places:
        own = place / FILE_NAME
        files = [own] if own.is_file() else sorted(place.glob(f"*/{FILE_NAME}"))
        for file in files:
            try:
                found.append(_read(file))
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                broken.append(file)
    return found, broken


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """A header, one line per run, and the mean and worst error of memory and speed."""
    rows = list(outcomes)
    width = max([len("run"), *(len(row.run) for row in rows)])
    out = [
        f"{'run':<{width}}  {'device':<8}{'engine':<10}{'ranks':>5}{'params':>9}"
        f"{'memory: planned':>17}{'measured':>11}{'error':>8}"
        f"{'tok/s: planned':>16}{'measured':>10}{'error':>8}"
    ]
    for row in rows:
        setup = row.setup
        memory = [_shown(size, format_size) for size in row.memory]
        speed = [_shown(rate, format_count) for rate in row.speed]
        out.append(
            f"{row.run:<{width}}  {setup['device']:<8}{setup['engine']:<10}{setup['ranks']:>5}"
            f"{format_count(setup['parameters']):>9}"
            f"{memory[0]:>17}{memory[1]:>11}{_shown(row.memory_error, _percent):>8}"
            f"{speed[0]:>16}{speed[1]:>10}{_shown(row.speed_error, _percent):>8}"
        )
    for name, errors in (
        ("memory", [row.memory_error for row in rows]),
        ("tokens/s", [row.speed_error for row in rows]),
    ):
        known = [error for error in errors if error is not None]
        if known:
            worst = max(known, key=abs)
            mean = sum(map(abs, known)) / len(known)
            out.append(f"{name}: {len(known)} runs, mean error {mean:.1%}, worst {worst:+.1%}")
    return out


def to_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """The table as plain values; an error of 0.1 means 10 %."""
    names = ("predicted", "measured", "error")
    return [
        {
            "run": row.run,
            **row.setup,
            "memory_bytes": dict(zip(names, (*row.memory, row.memory_error), strict=True)),
            "tokens_per_second": dict(zip(names, (*row.speed, row.speed_error), strict=True)),
        }
        for row in outcomes
    ]


def _read(file: Path) -> Outcome:
    raw = json.loads(read_regular(file))
    setup = raw["setup"]
    for name, kind in (("device", str), ("engine", str), ("ranks", int), ("parameters", int)):
        kind(setup[name])  # raises if a field that the table shows is missing
    predicted, measured = (raw[name] for name in ("predicted", "measured"))
    return Outcome(
        file.parent.name,
        setup,
        (predicted["memory_bytes"], measured["memory_bytes"]),
        (predicted.get("tokens_per_second"), measured.get("tokens_per_second")),
    )


def _error(predicted: float | None, measured: float | None) -> float | None:
    return None if predicted is None or not measured else predicted / measured - 1


def _percent(error: float) -> str:
    return f"{error:+.0%}"


def _shown(value: Any, as_text: Callable[[Any], str]) -> str:
    return "-" if value is None else as_text(value)
