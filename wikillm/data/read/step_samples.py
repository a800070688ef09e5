"""The samples that each optimizer step reads, when windows of samples are skipped.

A window is [first, stop) in the order of the samples. The last step before a window ends at or
before `first`, and the next step begins at `stop`. All samples in between are skipped, so every
step reads consecutive samples. The number of steps does not change, so a run that skips a window
ends later in the order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class SkipWindow:
    """The samples [first, stop), which training skips."""

    first: int
    stop: int
    reason: str = ""


class StepSamples:
    """The samples of every step from a position on.

    Args:
        batch: number of sequences in the global batch of a step.
        first_step: number of optimizer steps done at the start.
        position: the next sample at the start.
        windows: windows to skip; windows that end at or before `position` have no effect.

    Attributes:
        skipped: the skipped samples, keyed by the step (from 0) that follows them.
    """

    def __init__(
        self,
        batch: int,
        first_step: int = 0,
        position: int = 0,
        windows: Sequence[SkipWindow] = (),
    ) -> None:
        self._batch = batch
        self._steps = [first_step]  # first step of each segment of consecutive samples
        self._positions = [position]
        self.skipped: dict[int, SkipWindow] = {}
        for window in sorted(windows):
            step = self._steps[-1]
            position = self._positions[-1]
            if window.stop <= position:
                continue
            # Number of whole steps that end at the start of the window or before it.
            whole = max(0, window.first - position) // batch
            after = step + whole
            end = position + whole * batch
            self._steps.append(after)
            self._positions.append(window.stop)
            earlier = self.skipped.get(after)
            first = earlier.first if earlier else end
            self.skipped[after] = SkipWindow(first, window.stop, window.reason)

    def of(self, step: int) -> range:
        """The samples of the global batch of `step` (from 0); `step` is at least the first step."""
        segment = bisect_right(self._steps, step) - 1
        first = self._positions[segment] + (step - self._steps[segment]) * self._batch
        return range(first, first + self._batch)

    def position(self, steps: int) -> int:
        """The position in the order after `steps` steps: the end of the last step's samples."""
        if steps <= self._steps[0]:
            return self._positions[0]
        return self.of(steps - 1).stop

    def skipped_before(self, steps: int) -> list[SkipWindow]:
        """The samples that were skipped between the start and the end of step number `steps`."""
        return [window for step, window in self.skipped.items() if step < steps]
