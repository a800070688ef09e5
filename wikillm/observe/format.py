"""The log table: one line per logging step, aligned under a header, within 100 columns.

step/max  tokens    loss        lr   gnorm   tok/s   MFU  wait     mem     ETA
200/2000   3.28M  6.0213  4.97e-04    1.02    764K 60.0%    0%  11 GiB   12m3s
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from wikillm.core.units import format_count, format_seconds, format_size
from wikillm.observe import names


def _count(value: float) -> str:
    """A count in at most six characters: 9216, 81.92K, 764K, 3.277M."""
    return format_count(value) if value >= 10_000 else f"{value:.0f}"


def _norm(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:.2e}"


_COLUMNS: tuple[tuple[str, int, str, Callable[[float], str]], ...] = (
    ("tokens", 7, names.TOKENS, _count),
    ("loss", 8, names.LOSS, "{:.4f}".format),
    ("lr", 9, names.LEARNING_RATE, "{:.2e}".format),
    ("gnorm", 8, names.GRAD_NORM, _norm),
    ("tok/s", 7, names.TOKENS_PER_SECOND, _count),
    ("TFLOP/s", 7, names.TFLOPS_PER_DEVICE, "{:.1f}".format),
    ("MFU", 6, names.MFU, "{:.1%}".format),
    ("wait", 5, names.DATA_WAIT_FRACTION, "{:.0%}".format),
    ("mem", 8, names.MEMORY_BYTES, format_size),
)
"""(heading, width, name in `metrics.jsonl`, function that formats the value) of each column."""


class LogTable:
    """The log table of a run of `max_steps` and `total_tokens`; `has_mfu` adds TFLOP/s and MFU."""

    def __init__(self, max_steps: int, total_tokens: int, *, has_mfu: bool = False) -> None:
        self._max_steps = max_steps
        self._total_tokens = total_tokens
        self._step_width = max(8, 2 * len(str(max_steps)) + 1)
        hidden = () if has_mfu else ("TFLOP/s", "MFU")
        self._columns = [column for column in _COLUMNS if column[0] not in hidden]

    def header(self) -> str:
        """The line with the names of the columns."""
        cells = [name.rjust(width) for name, width, *_ in self._columns]
        return " ".join(["step/max".rjust(self._step_width), *cells, "ETA".rjust(7)])

    def line(self, values: Mapping[str, float | None]) -> str:
        """One logging step, from the values of `metrics.jsonl`; "-" where a value is missing."""
        step = f"{int(values.get(names.STEP) or 0)}/{self._max_steps}"
        cells = [_cell(values.get(key), show).rjust(width) for _, width, key, show in self._columns]
        eta = _cell(seconds_left(values, self._total_tokens), format_seconds)
        return " ".join([step.rjust(self._step_width), *cells, eta.rjust(7)])


def seconds_left(values: Mapping[str, float | None], total_tokens: int) -> float | None:
    """Seconds until `total_tokens` at the speed in `values`; None if the speed is unknown."""
    rate = values.get(names.TOKENS_PER_SECOND)
    tokens = values.get(names.TOKENS)
    if not rate or tokens is None:
        return None
    return max(0.0, (total_tokens - tokens) / rate)


def _cell(value: float | None, show: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    return show(value) if math.isfinite(value) else str(value)
