"""The moving average: arithmetic, shares of ranks, checkpoint and export."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness.tiny_model import tiny_model
from safetensors.torch import load_file

from wikillm.core.errors import CheckpointError
from wikillm.core.world import World
from wikillm.export.weights import fit, read_average, skeleton
from wikillm.train.callbacks.ema import EmaCallback, share_of


def world(rank: int, size: int) -> World:
    return World(rank=rank, size=size, local_rank=rank, local_size=size)


def drive(model: Any, callbacks: list[EmaCallback], first: int, last: int) -> list[torch.Tensor]:
    """Steps at which every weight grows by 1; returns the first parameter after each."""
    unused: Any = SimpleNamespace()
    seen = []
    for callback in callbacks:
        callback.on_train_begin(unused, unused, unused, model=model)
    for step in range(first, last + 1):
        state: Any = SimpleNamespace(global_step=step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        seen.append(next(iter(model.parameters())).detach().clone())
        for callback in callbacks:
            callback.on_step_end(unused, state, unused)
            if step == last:
                callback.on_save(unused, state, unused)
    return seen


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_average_is_the_recursion_and_exports_as_a_model(ranks: int, tmp_path: Path) -> None:
    model: Any = tiny_model()
    callbacks = [EmaCallback(0.75, 3, world(rank, ranks), tmp_path, None) for rank in range(ranks)]
    seen = drive(model, callbacks, 1, 5)
    expected = 0.75 * (0.75 * seen[2] + 0.25 * seen[3]) + 0.25 * seen[4]
    average = read_average(tmp_path / "checkpoint-5")
    torch.testing.assert_close(average[next(iter(dict(model.named_parameters())))], expected)
    whole = fit(average, skeleton(model.config), tmp_path)
    assert sum(map(torch.numel, whole.values())) == sum(map(torch.numel, model.parameters()))


def test_it_resumes_bit_by_bit(tmp_path: Path) -> None:
    one = tiny_model()
    two = tiny_model()
    drive(one, [EmaCallback(0.9, 2, world(0, 1), tmp_path / "whole", None)], 1, 6)
    drive(two, [EmaCallback(0.9, 2, world(0, 1), tmp_path / "parts", None)], 1, 4)
    point = tmp_path / "parts" / "checkpoint-4"
    drive(two, [EmaCallback(0.9, 2, world(0, 1), tmp_path / "parts", point)], 5, 6)
    files = [
        load_file(tmp_path / n / "checkpoint-6" / "ema" / "rank_00000.safetensors")
        for n in ("whole", "parts")
    ]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_before_its_start_there_is_none_and_export_says_so(tmp_path: Path) -> None:
    drive(tiny_model(), [EmaCallback(0.9, 9, world(0, 1), tmp_path, None)], 1, 2)
    with pytest.raises(CheckpointError, match="no moving average"):
        read_average(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_every_parameter_has_one_rank(ranks: int) -> None:
    model: Any = tiny_model()
    shares = [set(share_of(model, rank, ranks)) for rank in range(ranks)]
    assert sum(map(len, shares)) == len(set.union(*shares)) == len(dict(model.named_parameters()))
