"""Writes the ledger when training begins, as losses are logged, and at the end."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from wikillm.train.trainer import WikiTrainer


class LedgerCallback(TrainerCallback):
    """Checkpoints are not its concern: the trainer writes the ledger before it saves."""

    def __init__(self, trainer: WikiTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        point = self.trainer.context.point
        checkpoint = None
        if point is not None:
            checkpoint = point.checkpoint.name if point.origin else str(point.checkpoint)
        trainer = self.trainer
        trainer.ledger.begin_segment(trainer.first_step, trainer.consumed_samples, checkpoint)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = kwargs["logs"].get("loss")
        if loss is not None:
            self.trainer.ledger.log(float(loss))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.ledger.flush(durable=True)
