"""Publishes the checkpoint that HF and DeepSpeed have just written into the staging folder.

All ranks wait for each other; each fsyncs and hashes its share of the files; rank 0 writes the
manifest with all sizes and sha256, renames the folder to its final name and removes old
checkpoints; all ranks wait again. A reader sees a checkpoint whose every file is on disk, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState

from wikillm.checkpoints.layout import STATE, checkpoint_name
from wikillm.checkpoints.lineage import arrange, next_descent
from wikillm.checkpoints.manifest import FileEntry, deal_by_size, seal_files, write_manifest
from wikillm.checkpoints.retention import keep_newest, keep_of, publish
from wikillm.core.files import files_below, write_json
from wikillm.core.log import say
from wikillm.core.units import format_size
from wikillm.train.checkpoint_errors import saving
from wikillm.train.context import RunContext


class CheckpointCallback(TrainerCallback):
    """Makes HF's checkpoint complete, durable and visible, in one rename.

    Args:
        describe: the run state of a step, for the checkpoint (called on rank 0).
    """

    def __init__(self, context: RunContext, describe: Callable[[int], dict[str, Any]]) -> None:
        self.run = context.run
        self.world = context.world
        self.group = context.group
        self.keep = keep_of(context.resolved.config.train)
        self.describe = describe
        # This run's checkpoint that it resumed from or wrote last.
        self.origin = context.point.origin if context.point else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A save_total_limit lower than before makes room for the first save, not only after it."""
        if not self.world.is_main or self.origin is None:
            return
        spare = self.run.checkpoints / checkpoint_name(self.origin.position.step)
        for path in keep_newest(self.run.checkpoints, self.keep, spare):
            say(f"removed {path}: train.save_total_limit={self.keep.newest}")

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        with saving(self.run.staging, state.global_step):
            self._publish(state.global_step)

    def _publish(self, step: int) -> None:
        """Seal what is staged and give it its name. (all ranks)"""
        staged = self.run.staging / checkpoint_name(step)
        if self.world.is_main:
            # HF's pickle of the arguments: nothing reads it, and it holds absolute paths.
            (staged / "training_args.bin").unlink(missing_ok=True)
            write_json(staged / STATE, self.describe(step))
        self.group.barrier()
        # Rank 0 lists and shares out the files: a network folder may show other ranks old sizes.
        dealt = deal_by_size(staged, self.world.size) if self.world.is_main else None
        share: Any = self.group.gather(dealt)[0]
        sealed: list[Any] = self.group.gather(seal_files(staged, share[self.world.rank]))
        if self.world.is_main:
            self._finish(step, {name: entry for part in sealed for name, entry in part.items()})
        self.group.barrier()

    def _finish(self, step: int, entries: dict[str, FileEntry]) -> None:
        """Write the manifest, publish, and remove old checkpoints. (rank 0)"""
        folder = self.run.checkpoints
        staged = self.run.staging / checkpoint_name(step)
        final = folder / checkpoint_name(step)
        descent = next_descent(folder, step, self.origin)
        facts = {"step": step, "world_size": self.world.size, **descent.to_json()}
        write_manifest(staged, entries, facts)
        publish(staged, final)
        self.origin = descent
        abandoned = set(arrange(folder).abandoned)
        removed = keep_newest(folder, self.keep)
        size = sum(path.stat().st_size for path in files_below(final))
        say(f"saved {final}  {format_size(size)}")
        for path in removed:
            if path in abandoned:
                say(f"removed {path}, which the run had abandoned")
