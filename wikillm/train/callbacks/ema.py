"""An exponential moving average of the weights over the tail of a run, saved with each checkpoint.

average = decay x average + (1 - decay) x weights after each optimizer step, in float32. It starts
as the weights of `start_step` (Polyak and Juditsky 1992, doi:10.1137/0330046). Training never reads
it. Its arithmetic, and how it is split over the ranks, is in `fragments/average.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState

from wikillm.train.fragments.average import WeightAverage


class EmaCallback(TrainerCallback):
    """Comes before the callback that publishes checkpoints, and after the one that stops at NaN.

    Args:
        start_step: optimizer step whose weights the average starts with.
        average: that of the prepared engine; a resumed one goes on.
    """

    def __init__(self, decay: float, start_step: int, average: Callable[[], WeightAverage]) -> None:
        self.decay = decay
        self.start_step = start_step
        self.average = average

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        average = self.average()
        if average.has_begun or state.global_step >= self.start_step:
            average.update(self.decay)
