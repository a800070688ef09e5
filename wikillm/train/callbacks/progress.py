"""Marks on the supervisor's board what comes next: a step, an evaluation, a save. Last of the callbacks."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wikillm.supervise.board import Board


class ProgressCallback(TrainerCallback):
    """The order is Hugging Face's: step end, evaluation, save. Reading batches is marked by the trainer."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.board.enter("step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.board.step_done(state.global_step)
        if control.should_evaluate:
            self.board.enter("evaluate")
        elif control.should_save:
            self.board.enter("save")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if control.should_save:
            self.board.enter("save")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.board.enter("close")
