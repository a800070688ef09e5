"""Which samples an optimizer step reads, and which windows of samples the run leaves out.

A window is [first, stop) in the order of the samples. The last step before it ends at or before
its first sample; the next step begins at its stop. What lies between that step's end and the stop
is left out, so every step reads consecutive samples. The number of steps does not change: a run
that leaves out a window ends later in the order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class SkipWindow:
    """The samples [first, stop) are not trained."""

    first: int
    stop: int
    reason: str = ""


class StepSamples:
    """The samples of every step from a position on.

    Args:
        batch: sequences in the global batch of a step.
        first_step: optimizer steps done at the start.
        position: the sample that comes next then.
        windows: to leave out; those that end at or before `position` have been.

    Attributes:
        skipped: by the step (from 0) that they come before, the samples that are left out.
    """

    def __init__(
        self,
        batch: int,
        first_step: int = 0,
        position: int = 0,
        windows: Sequence[SkipWindow] = (),
    ) -> None:
        self._batch = batch
        self._steps = [first_step]  # where a segment of consecutive samples begins
        self._positions = [position]
        self.skipped: dict[int, SkipWindow] = {}
        for window in sorted(windows):
            step = self._steps[-1]
            position = self._positions[-1]
            if window.stop <= position:
                continue
            # Whole steps that end at or before the window.
            whole = max(0, window.first - position) // batch
            after = step + whole
            end = position + whole * batch
            self._steps.append(after)
            self._positions.append(window.stop)
            earlier = self.skipped.get(after)
            first = earlier.first if earlier else end
            self.skipped[after] = SkipWindow(first, window.stop, window.reason)

    def of(self, step: int) -> range:
        """The samples of the global batch of `step` (from 0), at or after the first step."""
        segment = bisect_right(self._steps, step) - 1
        first = self._positions[segment] + (step - self._steps[segment]) * self._batch
        return range(first, first + self._batch)

    def position(self, steps: int) -> int:
        """The position in the order after `steps` steps: the end of the samples of the last one."""
        if steps <= self._steps[0]:
            return self._positions[0]
        return self.of(steps - 1).stop

    def skipped_before(self, steps: int) -> list[SkipWindow]:
        """What was left out since the start, by the end of `steps` steps in all."""
        return [window for step, window in self.skipped.items() if step < steps]
