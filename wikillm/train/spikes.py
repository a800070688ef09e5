"""Decides which losses are spikes, and reads and writes RUN/skips.json, the skipped windows.

A spike exceeds the median of the recent losses by many times their usual distance from it.

The limit is median + threshold x max(1.4826 x MAD, 0.5 % of the median), over the last `window`
losses that were not spikes. MAD is the median distance from the median, and 1.4826 x MAD estimates
a standard deviation that outliers do not move (Rousseeuw and Croux 1993,
doi:10.1080/01621459.1993.10476408). Only losses above the limit are spikes. While the loss falls,
as in a warm-up, the median lags above it and the distances are large: the test is less strict then.
"""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wikillm.core.errors import CheckpointError
from wikillm.core.files import write_json
from wikillm.data.read.step_samples import SkipWindow

SKIPS = "skips.json"
"""Written by rank 0 before the run goes back; read by rank 0 at every start, for all ranks."""
MIN_LOSSES = 32
"""Number of losses before the first judgment; a shorter window is enough when it is full."""
_DEVIATION = 1.4826  # standard deviations of a normal distribution in a MAD
_FLOOR = 0.005  # least width as a share of the median, since losses may agree by chance


@dataclass(frozen=True, slots=True)
class LossSpike:
    """A loss above the limit. `step` counts from 0."""

    step: int
    loss: float
    median: float
    limit: float


class SpikeDetector:
    """Judges one loss per optimizer step.

    Args:
        recent: losses before the first step, from a checkpoint.

    Attributes:
        recent: the losses that the next one is compared with; a checkpoint records them.
    """

    def __init__(self, window: int, threshold: float, recent: Iterable[float] = ()) -> None:
        self.threshold = threshold
        self.recent = deque(recent, maxlen=window)
        self._window = window
        self._in_a_row = 0

    def judge(self, step: int, loss: float) -> LossSpike | None:
        """The spike, or None for an ordinary loss. A full window of spikes is a new level."""
        if len(self.recent) >= min(MIN_LOSSES, self._window):
            median = statistics.median(self.recent)
            distance = statistics.median(abs(each - median) for each in self.recent)
            width = max(_DEVIATION * distance, _FLOOR * abs(median))
            limit = median + self.threshold * width
            if loss > limit and self._in_a_row < self._window:
                self._in_a_row += 1
                return LossSpike(step, loss, median, limit)
            if loss > limit:
                self.recent.clear()
        self._in_a_row = 0
        self.recent.append(loss)
        return None


def read_skips(run: Path) -> tuple[SkipWindow, ...]:
    """A run's skipped windows in the order of the decisions.

    Raises CheckpointError if the file is damaged.
    """
    path = run / SKIPS
    if not path.exists():
        return ()
    try:
        windows = json.loads(path.read_text(encoding="utf-8"))["skips"]
        return tuple(SkipWindow(int(w["first"]), int(w["stop"]), str(w["reason"])) for w in windows)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} does not say which samples the run skips.",
            got=repr(error),
            fix="restore the file; without it the run would train on samples that it has skipped",
        ) from None


def write_skips(run: Path, skips: Sequence[SkipWindow]) -> None:
    """Replace the file, durably. Raises OSError."""
    write_json(run / SKIPS, {"skips": [asdict(skip) for skip in skips]})
