"""Checks for disk space before each checkpoint: a full disk costs a checkpoint, not the run."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from wikillm.checkpoints.lineage import arrange
from wikillm.checkpoints.retention import make_room
from wikillm.core.errors import MachineError
from wikillm.core.log import say, warn
from wikillm.core.units import format_size
from wikillm.train.context import RunContext
from wikillm.train.saver import CheckpointSaver


class DiskSpaceCallback(TrainerCallback):
    """Before each save rank 0 checks the free space, and removes superfluous checkpoints if needed.

    A checkpoint that still does not fit is skipped with a warning, and training continues. If it is
    the last checkpoint of this start, the run ends with code 3 instead.
    """

    def __init__(self, context: RunContext, saver: CheckpointSaver) -> None:
        self.context = context
        self.saver = saver

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not control.should_save:
            return
        # The saver writes and removes checkpoints in the background. Waiting for the last save may
        # take longer than a step may.
        self.context.heartbeat.enter("save")
        self.saver.finish()
        reported = self._missing_space() if self.context.world.is_main else None
        missing: Any = self.context.group.gather(reported)[0]
        if missing is None:
            return
        what = f"There is no room for the checkpoint of step {state.global_step}."
        if control.should_training_stop or state.global_step >= state.max_steps:
            again = "start the same command again with --resume auto"
            raise MachineError(what, got=missing, fix=f"free some room; then {again}")
        warn(f"{what} It is left out, and training goes on.\n  {missing}")
        control.should_save = False

    def _missing_space(self) -> str | None:
        """The missing space as text; None if the checkpoint fits. (rank 0)"""
        folder = self.context.run.checkpoints
        size = self.context.checkpoint_bytes
        removed, missing = make_room(folder, size, self.saver.keep)
        for path in removed:
            say(f"removed {path} before the next save: the disk is nearly full")
        if not missing:
            return None
        newest = next(iter(arrange(folder).branch), None)
        last = f"the newest complete checkpoint is {newest}" if newest else "there is none yet"
        return f"it takes {format_size(size)}, of which {format_size(missing)} are missing; {last}"
