"""The names in a run's checkpoint folder.

RUN/checkpoints/
  checkpoint-200/            complete: the folder got this name after its manifest was written
    wikillm_manifest.json    size and sha256 of every other file, and its ancestors (see lineage)
    wikillm_state.json       run state for a resume (step, consumed samples, store, tracker id)
    model.safetensors ...    weights and optimizer state (see tensor_layout)
    ema/                     with train.ema_decay: the moving average of the weights
  .newest.json               lineage of the checkpoint written last (see lineage)
  .staging/checkpoint-300/   being written; never read
  .deleting-checkpoint-100/  being deleted
  .replaced-checkpoint-200/  being replaced by a new checkpoint of the same step; gets its name
                             back if the process is killed before the new one has it
"""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "wikillm_manifest.json"
STATE = "wikillm_state.json"
TRAINER_STATE = "trainer_state.json"
AVERAGE = "ema"
STAGING = ".staging"
NEWEST = ".newest.json"
DELETING = ".deleting-"
REPLACED = ".replaced-"

_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_name(step: int) -> str:
    """Hugging Face's name for the checkpoint after `step` optimizer steps."""
    return f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint folder's name; None for a folder with another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints below `folder`, highest step first; not verified."""
    if not folder.is_dir():
        return []
    found = [
        (step, path)
        for path in folder.iterdir()
        if path.is_dir() and (step := step_of(path)) is not None
    ]
    return [path for _, path in sorted(found, reverse=True)]
