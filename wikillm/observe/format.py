"""The log table: one line per logging step, aligned under a header, within 100 columns.

step/max  tokens    loss        lr   gnorm   tok/s   MFU  wait     mem     ETA
200/2000   3.28M  6.0213  4.97e-04    1.02    764K 60.0%    0%  11 GiB   12m3s
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from wikillm.core.units import format_count, format_seconds, format_size
from wikillm.observe import names


class LogTable:
    """The columns of a run that ends at `max_steps` and `total_tokens`; MFU where `has_mfu`."""

    def __init__(self, max_steps: int, total_tokens: int, *, has_mfu: bool = False) -> None:
        self._max_steps = max_steps
        self._total_tokens = total_tokens
        self._columns = [
            ("step/max", max(8, 2 * len(str(max_steps)) + 1)),
            ("tokens", 7),
            ("loss", 8),
            ("lr", 9),
            ("gnorm", 8),
            ("tok/s", 7),
            *([("TFLOP/s", 7), ("MFU", 6)] if has_mfu else []),
            ("wait", 5),
            ("mem", 8),
            ("ETA", 7),
        ]

    def header(self) -> str:
        """The names of the columns, to print before the first line and again now and then."""
        return " ".join(name.rjust(width) for name, width in self._columns)

    def line(self, values: Mapping[str, float | None]) -> str:
        """One logging step, from the values of `metrics.jsonl`; "-" where a value is missing."""
        cells = {
            "step/max": f"{int(values.get(names.STEP) or 0)}/{self._max_steps}",
            "tokens": _number(values.get(names.TOKENS), format_short),
            "loss": _number(values.get(names.LOSS), lambda v: f"{v:.4f}"),
            "lr": _number(values.get(names.LEARNING_RATE), lambda v: f"{v:.2e}"),
            "gnorm": _number(values.get(names.GRAD_NORM), _norm),
            "tok/s": _number(values.get(names.TOKENS_PER_SECOND), format_short),
            "TFLOP/s": _number(values.get(names.TFLOPS_PER_DEVICE), lambda v: f"{v:.1f}"),
            "MFU": _number(values.get(names.MFU), lambda v: f"{v:.1%}"),
            "wait": _number(values.get(names.DATA_WAIT_FRACTION), lambda v: f"{v:.0%}"),
            "mem": _number(values.get(names.MEMORY_BYTES), format_size),
            "ETA": _number(self._seconds_left(values), format_seconds),
        }
        return " ".join(cells[name].rjust(width) for name, width in self._columns)

    def _seconds_left(self, values: Mapping[str, float | None]) -> float | None:
        rate = values.get(names.TOKENS_PER_SECOND)
        tokens = values.get(names.TOKENS)
        if not rate or tokens is None:
            return None
        # By tokens, since in a batch ramp later steps take longer.
        return max(0.0, (self._total_tokens - tokens) / rate)


def format_short(value: float) -> str:
    """A count in at most six characters: 9216, 81.92K, 764K, 3.277M."""
    return format_count(value) if value >= 10_000 else f"{value:.0f}"


def _norm(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:.2e}"


def _number(value: float | None, write: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    return write(value) if math.isfinite(value) else str(value)
