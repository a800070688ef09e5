"""Checkpoints in the format of earlier versions of WikiLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from wikillm.checkpoints.layout import MANIFEST, STATE, checkpoint_name
from wikillm.checkpoints.lineage import next_ancestry
from wikillm.checkpoints.manifest import files_to_list, seal_files, write_manifest
from wikillm.checkpoints.retention import publish, rotate
from wikillm.core.files import write_json
from wikillm.train.trainer import WikiTrainer


def seal_again(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of format 1, which has a sha256 for every file."""
    write_manifest(checkpoint, seal_files(checkpoint, files_to_list(checkpoint)), facts)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    write_json(checkpoint / MANIFEST, {**manifest, "format_version": 1})


def save_as_before(self: WikiTrainer, model: Any, trial: Any) -> None:
    """What Hugging Face and DeepSpeed write, published as versions up to 0.2 did. (all ranks)"""
    saver = self.saver
    step = self.state.global_step
    Trainer._save_checkpoint(self, model, trial)
    self.context.group.barrier()
    if self.context.world.is_main:
        staged = saver.staging / checkpoint_name(step)
        (staged / "training_args.bin").unlink(missing_ok=True)
        write_json(staged / STATE, self.run_state(step))
        ancestry = next_ancestry(saver.folder, step, saver.origin)
        seal_again(
            staged, {"step": step, "world_size": self.context.world.size, **ancestry.to_json()}
        )
        publish(staged, saver.folder / checkpoint_name(step))
        saver.origin = ancestry
        rotate(saver.folder, saver.keep)
    self.context.group.barrier()


def train_in_the_old_format(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Run `train` on this rank as an earlier version: its checkpoints are of format 1."""
    from harness.programs import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WikiTrainer, "_save_checkpoint", save_as_before)
        return train(words, **options)
