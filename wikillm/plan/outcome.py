"""Compares predictions with measurements: RUN/outcome.json of finished runs, and a table of runs.

An outcome is one JSON object: `setup` describes the run; `predicted` and `measured` each have
`memory_bytes` (of the rank with the highest peak) and `tokens_per_second` (over all ranks;
predicted only for a calibrated machine or a GPU in the planner's list). Errors are
(predicted - measured) / measured: with a positive error, a run needs less memory than planned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from wikillm.core.files import read_regular
from wikillm.core.units import format_count, format_size

FILE_NAME = "outcome.json"


def find_outcomes(folders: Iterable[Path]) -> tuple[list[dict[str, Any]], list[Path]]:
    """Outcomes of run directories, and unreadable files. A folder may also hold run directories.

    An outcome has `run` (the folder's name), the keys of `setup`, and the {predicted, measured,
    error} of `memory_bytes` and `tokens_per_second`. A value is None if it is unknown; an error of
    0.1 means 10 %.
    """
    found: list[dict[str, Any]] = []
    broken: list[Path] = []
    for folder in folders:
        own = folder / FILE_NAME
        files = [own] if own.is_file() else sorted(folder.glob(f"*/{FILE_NAME}"))
        for file in files:
            try:
                found.append(_read(file))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                broken.append(file)
    return found, broken


def table(outcomes: Iterable[dict[str, Any]]) -> list[str]:
    """A header, one line per run, and the mean and worst error of memory and speed."""
    rows = list(outcomes)
    width = max([len("run"), *(len(row["run"]) for row in rows)])
    lines = [
        f"{'run':<{width}}  {'device':<8}{'engine':<10}{'ranks':>5}{'params':>9}"
        f"{'memory: planned':>17}{'measured':>11}{'error':>8}"
        f"{'tok/s: planned':>16}{'measured':>10}{'error':>8}"
    ]
    for row in rows:
        memory = _as_text(row["memory_bytes"], format_size)
        speed = _as_text(row["tokens_per_second"], format_count)
        lines.append(
            f"{row['run']:<{width}}  {row['device']:<8}{row['engine']:<10}{row['ranks']:>5}"
            f"{format_count(row['parameters']):>9}"
            f"{memory[0]:>17}{memory[1]:>11}{memory[2]:>8}{speed[0]:>16}{speed[1]:>10}{speed[2]:>8}"
        )
    for name, key in (("memory", "memory_bytes"), ("tokens/s", "tokens_per_second")):
        errors = [row[key]["error"] for row in rows if row[key]["error"] is not None]
        if errors:
            worst = max(errors, key=abs)
            mean = sum(map(abs, errors)) / len(errors)
            lines.append(f"{name}: {len(errors)} runs, mean error {mean:.1%}, worst {worst:+.1%}")
    return lines


def _read(file: Path) -> dict[str, Any]:
    raw = json.loads(read_regular(file))
    outcome = {"run": file.parent.name, **raw["setup"]}
    for name, kind in (("device", str), ("engine", str), ("ranks", int), ("parameters", int)):
        kind(outcome[name])  # raises if a field that the table shows is missing
    for name in ("memory_bytes", "tokens_per_second"):
        predicted = raw["predicted"].get(name)
        measured = raw["measured"].get(name)
        is_known = predicted is not None and measured
        error = predicted / measured - 1 if is_known else None
        outcome[name] = {"predicted": predicted, "measured": measured, "error": error}
    return outcome


def _as_text(values: Mapping[str, Any], form: Callable[[Any], str]) -> list[str]:
    """The predicted value, the measured value and the error, with "-" for an unknown one."""
    texts = [
        "-" if values[name] is None else form(values[name]) for name in ("predicted", "measured")
    ]
    return [*texts, "-" if values["error"] is None else f"{values['error']:+.0%}"]
