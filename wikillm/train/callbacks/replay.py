"""Ends a replay after its last step, or starts a second pass (`train.replay`)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from wikillm.train.resume import Computed, Replay
from wikillm.train.rewind import Rewind


class ReplayCallback(TrainerCallback):
    """Records the loss and the gradient norm of the last step. (all ranks)

    If they differ from the logged values, a second pass computes the steps again, which shows
    whether this machine repeats its own result.
    """

    def __init__(self, replay: Replay) -> None:
        self.replay = replay

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if state.global_step != self.replay.logged.step or "loss" not in logs:
            return
        has_norm = self.replay.logged.grad_norm is not None
        norm = float(logs["grad_norm"]) if has_norm else None
        computed = Computed(state.global_step, float(logs["loss"]), norm)
        self.replay.passes.append(computed)
        if len(self.replay.passes) == 1 and computed != self.replay.logged:
            raise Rewind("the replay computes the steps a second time")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= self.replay.logged.step:
            control.should_training_stop = True
