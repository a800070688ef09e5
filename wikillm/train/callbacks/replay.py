"""Ends a replay after its last step, and computes the loss of one step twice (`train.replay`)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from wikillm.data.read.loader import to_device
from wikillm.train.resume import Replay
from wikillm.train.trainer import WikiTrainer


class ReplayCallback(TrainerCallback):
    """The forward pass of the step runs once more before it, over the same weights and batch."""

    def __init__(self, trainer: WikiTrainer, replay: Replay) -> None:
        self.last_step = replay.last_step
        train_step = trainer.training_step

        def training_step(model: Any, inputs: Any, targets: Any = None) -> torch.Tensor:
            if trainer.state.global_step != replay.step - 1:
                return train_step(model, inputs, targets)
            with torch.no_grad(), trainer.compute_loss_context_manager():
                device = trainer.args.device
                losses: list[Any] = [
                    trainer.compute_loss(model, to_device(b, device), num_items_in_batch=targets)
                    for b in inputs
                ]
            again = train_step(model, inputs, targets)
            replay.forwards += [float(torch.stack(losses).sum()), float(again)]
            return again

        trainer.training_step = training_step  # type: ignore[method-assign,assignment]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.last_step
