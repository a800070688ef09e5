"""Python's garbage collector on a schedule that all ranks share.

Left alone it runs when a rank's own allocations ask for it: one rank pauses in one step, another in the next, and each
time all wait. Here it is off inside steps and runs on every rank after the same step. What exists when training begins
(modules, the model, the store) is frozen: no collection walks over it again.
"""

from __future__ import annotations

import gc
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class GarbageCallback(TrainerCallback):
    """Collects after every `every` optimizer steps, and before a checkpoint or an evaluation. `close` undoes it."""

    def __init__(self, every: int = 50) -> None:
        self.every, self._was_enabled = every, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self.every == 0 or control.should_save or control.should_evaluate:
            gc.collect()

    def close(self) -> None:
        """The collector as it was before training, also after a failure."""
        if self._was_enabled:
            gc.unfreeze()
            gc.enable()
