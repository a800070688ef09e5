"""An exponential moving average of the weights over the tail of a run, saved with each checkpoint.

average = decay x average + (1 - decay) x weights after each optimizer step, in float32. The average
starts as the weights of `start_step` (Polyak and Juditsky 1992, doi:10.1137/0330046). Training
never reads it. See `fragments/average.py` for the arithmetic and the division over the ranks.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerState

from wikillm.train.trainer import WikiTrainer


class EmaCallback(TrainerCallback):
    """Updates the average after each step. Must come after the callback that stops at NaN.

    Args:
        start_step: optimizer step whose weights become the first average.
    """

    def __init__(self, trainer: WikiTrainer, decay: float, start_step: int) -> None:
        self.trainer = trainer
        self.decay = decay
        self.start_step = start_step

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        average = self.trainer.average
        assert average is not None, "it is made with the engine"
        if average.has_begun or state.global_step >= self.start_step:
            average.update(self.decay)
