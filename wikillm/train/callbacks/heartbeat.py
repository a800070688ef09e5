"""Marks the next phase on the supervisor's heartbeat: a step, an evaluation or a save."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from wikillm.supervise.heartbeat import Heartbeat


class HeartbeatCallback(TrainerCallback):
    """Must be the last callback: it marks the phase that follows, once the others have decided it.

    The trainer itself marks the reading of data.
    """

    def __init__(self, heartbeat: Heartbeat) -> None:
        self.heartbeat = heartbeat

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.heartbeat.enter("step")

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.heartbeat.step_done(state.global_step)
        if control.should_evaluate:
            self.heartbeat.enter("evaluate")
        elif control.should_save:
            self.heartbeat.enter("save")

    def on_evaluate(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        if control.should_save:
            self.heartbeat.enter("save")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.heartbeat.enter("close")
