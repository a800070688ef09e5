"""Python's garbage collector on a schedule that all ranks share.

By default the collector runs when a rank's own allocations trigger it: one rank pauses in one step,
another in the next, and each time all ranks wait. Here the collector is off inside steps, and runs
on all ranks after the same step. Objects that exist when training begins (modules, model, store)
are frozen: they are never scanned again.
"""

from __future__ import annotations

import gc
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState


class GarbageCallback(TrainerCallback):
    """Collects every `every` optimizer steps, and before a checkpoint or an evaluation."""

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._was_enabled = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step % self.every == 0 or control.should_save or control.should_evaluate:
            gc.collect()

    def close(self) -> None:
        """Restore the collector as it was before training; call it after a failure too."""
        if self._was_enabled:
            gc.unfreeze()
            gc.enable()
