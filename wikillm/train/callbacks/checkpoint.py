"""Publishes what HF and DeepSpeed have just written into the staging folder.

Order: all ranks wait for each other; each fsyncs and hashes its share of the files; rank 0 writes the manifest
with all sizes and sha256, renames the folder to its final name, and removes what is too old; all ranks wait
again. A reader therefore sees a checkpoint whose every file is on disk, or no checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wikillm.checkpoints.layout import STATE, checkpoint_name
from wikillm.checkpoints.lineage import Descent, arrange, next_descent
from wikillm.checkpoints.manifest import deal_by_size, seal_files, write_manifest
from wikillm.checkpoints.retention import keep_newest, publish
from wikillm.core.files import files_below, write_json
from wikillm.core.log import say
from wikillm.core.units import format_size
from wikillm.core.world import World
from wikillm.train.checkpoint_errors import saving
from wikillm.train.collectives import ControlGroup
from wikillm.train.run_dir import RunDir


class CheckpointCallback(TrainerCallback):
    """Makes HF's checkpoint complete, durable and visible, in one rename.

    Args:
        describe: the run state to put in (see train/resume.py), asked for at every save on rank 0.
        origin: the checkpoint of this run that it goes on from; None when it begins here or from elsewhere.
    """

    def __init__(
        self,
        run: RunDir,
        world: World,
        group: ControlGroup,
        keep: int,
        describe: Callable[[int], dict[str, Any]],
        origin: Descent | None = None,
    ) -> None:
        self.run, self.world, self.group, self.keep, self.describe = (
            run,
            world,
            group,
            keep,
            describe,
        )
        self.origin = origin
        self.seconds = 0.0
        self.latest: Path | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A lower train.save_total_limit than before makes room for the first save, not only after it."""
        if not self.world.is_main or self.origin is None:
            return
        spare = self.run.checkpoints / checkpoint_name(self.origin.place.step)
        for path in keep_newest(self.run.checkpoints, self.keep, spare):
            say(f"removed {path}: train.save_total_limit={self.keep}")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with saving(self.run.staging, state.global_step):
            self._publish(state)

    def _publish(self, state: TrainerState) -> None:
        """Seal what is staged and give it its name. (all ranks)"""
        start = time.perf_counter()
        name = checkpoint_name(state.global_step)
        staged, final = self.run.staging / name, self.run.checkpoints / name
        if self.world.is_main:
            # HF's pickle of the arguments: nothing reads it, and it holds absolute paths.
            (staged / "training_args.bin").unlink(missing_ok=True)
            write_json(staged / STATE, self.describe(state.global_step))
        self.group.barrier()
        # Rank 0 deals the files out: a network folder may show other ranks older sizes.
        dealt = deal_by_size(staged, self.world.size) if self.world.is_main else None
        share: Any = self.group.gather(dealt)[0]
        shares = self.group.gather(seal_files(staged, share[self.world.rank]))
        if self.world.is_main:
            entries = {name: entry for part in shares for name, entry in part.items()}  # type: ignore[attr-defined]
            descent = next_descent(self.run.checkpoints, state.global_step, self.origin)
            facts = {"step": state.global_step, "world_size": self.world.size, **descent.to_json()}
            write_manifest(staged, entries, facts)
            publish(staged, final)
            self.origin = descent
            abandoned = set(arrange(self.run.checkpoints).abandoned)
            removed = keep_newest(self.run.checkpoints, self.keep)
            size = sum(path.stat().st_size for path in files_below(final))
            self.seconds += time.perf_counter() - start
            say(f"saved {final}  {format_size(size)}")
            for path in removed:
                if path in abandoned:
                    say(f"removed {path}, which the run had abandoned")
        self.latest = final
        self.group.barrier()
