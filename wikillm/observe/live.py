"""The live view of a run on a terminal: progress, losses, speed, memory, the next save.

rich draws the view below the lines that a run prints. The training thread redraws it: if a
separate thread did, a fork could copy a lock while that thread holds it. If drawing fails, the view
ends and plain lines are printed instead. The cursor stays visible, since a killed run could not
show it again.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wikillm.core.log import show_status_with
from wikillm.core.printable import PrintableStream, printable
from wikillm.core.units import format_count, format_seconds, format_size
from wikillm.observe import names
from wikillm.observe.format import seconds_left

REFRESH_SECONDS = 0.25
LOSSES = 48
_BARS = "▁▂▃▄▅▆▇█"


def wants_live_view(
    stream: Any = None, environ: Mapping[str, str] = os.environ, *, setting: str = "auto"
) -> bool:
    """Whether `setting` is auto and `stream` (default: stdout) is a terminal that can be redrawn,
    outside of CI."""
    out = sys.stdout if stream is None else stream
    can_redraw = environ.get("TERM", "") not in ("", "dumb", "unknown")
    return setting == "auto" and can_redraw and not environ.get("CI") and bool(out.isatty())


class LiveView:
    """A view of one run. No method raises.

    Args:
        max_steps, total_tokens: the horizon.
        save_steps: steps between two checkpoints; None if only the last step is saved.
        redirect: print other output to stdout above the view.
    """

    def __init__(
        self,
        max_steps: int,
        total_tokens: int,
        save_steps: int | None,
        stream: TextIO | None = None,
        *,
        redirect: bool = True,
    ) -> None:
        out: Any = sys.stdout if stream is None else stream
        self._max_steps = max_steps
        self._total_tokens = total_tokens
        self._save_steps = save_steps
        self._losses: deque[float] = deque(maxlen=LOSSES)
        self._values: dict[str, float | None] = {}
        self._validation: float | None = None
        self._step = 0
        self._status = "waiting for the first step"
        self._last_drawn = 0.0
        file = out.wrapped if isinstance(out, PrintableStream) else out
        console = _Console(file=file, highlight=False, markup=False, emoji=False)
        self._live: Live | None = Live(
            self._draw(),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=redirect,
            redirect_stderr=redirect and sys.stderr.isatty(),
        )

    def start(self) -> None:
        """Show the view, until `stop`."""
        self._try(lambda live: live.start(refresh=True))
        show_status_with(self.status)

    def stop(self) -> None:
        """Remove the view. May be called more than once."""
        show_status_with(None)
        self._try(lambda live: live.stop())
        self._live = None

    @property
    def is_shown(self) -> bool:
        return self._live is not None

    def step(self, step: int) -> None:
        """Show that an optimizer step is done."""
        self._step = step
        self._status = ""
        if time.monotonic() - self._last_drawn >= REFRESH_SECONDS:
            self._refresh()

    def record(self, values: Mapping[str, float | None]) -> None:
        """Show the values of a logging step, named as in `metrics.jsonl`."""
        self._values = dict(values)
        self._step = int(values.get(names.STEP) or self._step)
        loss = values.get(names.LOSS)
        if loss is not None and math.isfinite(loss):
            self._losses.append(loss)
        self._status = ""
        self._refresh()

    def show_evaluation(self, loss: float) -> None:
        """Show the loss of an evaluation."""
        self._validation = loss
        self._refresh()

    def status(self, message: str) -> None:
        """Show what the run does instead of a step."""
        self._status = message
        self._refresh()

    def _refresh(self) -> None:
        self._last_drawn = time.monotonic()
        self._try(lambda live: live.update(self._draw(), refresh=True))

    def _try(self, act: Callable[[Live], None]) -> None:
        """Call `act`. An error of rich or of the terminal ends the view, but not the run."""
        if self._live is None:
            return
        try:
            act(self._live)
        except Exception:
            live, self._live = self._live, None
            show_status_with(None)
            try:
                live.stop()
            except Exception:
                return

    def _draw(self) -> RenderableType:
        share = self._step / max(1, self._max_steps)
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        done = f"step {self._step:,}/{self._max_steps:,}"
        eta = seconds_left(self._values, self._total_tokens)
        when = f"{share:.0%}" if eta is None else f"{share:.0%}  {format_seconds(eta)} left"
        bar = ProgressBar(total=max(1, self._max_steps), completed=self._step)
        head.add_row(Text(done), bar, Text(when))
        lines = [self._loss_line(), self._speed_line(), printable(self._status)]
        return Group(head, *(_line(text) for text in lines if text))

    def _loss_line(self) -> str:
        if not self._losses:
            return ""
        parts = [f"loss {self._losses[-1]:.4f}", sparkline(self._losses)]
        if (norm := self._values.get(names.GRAD_NORM)) is not None:
            parts.append(f"gnorm {norm:.3g}")
        if self._validation is not None:
            parts.append(f"validation {self._validation:.4f}")
        return "  ".join(parts)

    def _speed_line(self) -> str:
        values = self._values
        shown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
            (names.TOKENS_PER_SECOND, "{} tokens/s", format_count),
            (names.MFU, "MFU {}", "{:.1%}".format),
            (names.DATA_WAIT_FRACTION, "wait {}", "{:.0%}".format),
            (names.MEMORY_BYTES, "memory {}", format_size),
        )
        parts = [
            template.format(write(value))
            for name, template, write in shown
            if (value := values.get(name)) is not None
        ]
        return "  ".join([*parts, self._next_save()]) if parts else ""

    def _next_save(self) -> str:
        next_save = self._max_steps
        if self._save_steps:
            next_multiple = (self._step // self._save_steps + 1) * self._save_steps
            next_save = min(next_multiple, self._max_steps)
        return f"next save at step {next_save:,}"


class _Console(Console):
    """A console that leaves the cursor visible."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def sparkline(values: Sequence[float]) -> str:
    """One character per value, scaled from the lowest to the highest value."""
    low = min(values)
    span = max(values) - low
    if not span:
        return "▄" * len(values)
    return "".join(_BARS[int((value - low) / span * (len(_BARS) - 1))] for value in values)


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")
