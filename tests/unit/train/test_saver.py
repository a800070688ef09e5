"""The saver copies the whole share of a rank only if the memory of its node suffices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wikillm.checkpoints.retention import Keep
from wikillm.core.world import World
from wikillm.train import saver as module
from wikillm.train.saver import CheckpointSaver

GIB = 1 << 30


@pytest.mark.parametrize(("has_gpu", "available", "fits"), [
    (False, 4 * 1.5 * 33, True), (False, 4 * 1.4 * 33, False),
    (True, 4 * 1.6 * 33, False), (True, 4 * (64 + 17), True),
])  # fmt: skip
def test_pinned_memory_is_counted_as_torch_allocates_it(
    has_gpu: bool, available: float, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four ranks of a node with 33 GiB each, for which torch pins 64 GiB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(module, "available_memory", lambda: int(available * GIB) + 1)
    world = replace(World.from_env({}), local_size=4)
    saver = CheckpointSaver(tmp_path, tmp_path, world, Keep(1), None)
    assert saver._fits(33 * GIB) == fits
