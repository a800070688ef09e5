"""The moving average: its arithmetic, its start, and its continuation after a load.

tests/dist/test_training_state.py has it on other ranks and engines, test_recipes.py in real runs.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness.tiny_model import tiny_model
from safetensors.torch import save_file

from wikillm.core.errors import CheckpointError
from wikillm.export.weights import fit, read_average, skeleton
from wikillm.train.callbacks.ema import EmaCallback
from wikillm.train.fragments.average import WeightAverage
from wikillm.train.fragments.state import TrainingState
from wikillm.train.restore import restore_average


def average_of(model: Any) -> WeightAverage:
    return WeightAverage(TrainingState(model, torch.optim.AdamW(model.parameters())))


def trainer_of(average: WeightAverage) -> Any:
    return SimpleNamespace(average=average)


def drive(model: Any, callback: EmaCallback, first: int, last: int) -> list[torch.Tensor]:
    """Steps at which every weight grows by 1; returns the first parameter after each."""
    unused: Any = SimpleNamespace()
    seen = []
    for step in range(first, last + 1):
        state: Any = SimpleNamespace(global_step=step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        seen.append(next(iter(model.parameters())).detach().clone())
        callback.on_step_end(unused, state, unused)
    return seen


def whole(average: WeightAverage) -> dict[str, torch.Tensor]:
    return {part.spec.name: part.values.reshape(part.spec.shape) for part in average.parts}


def test_the_average_follows_the_recursion_and_fits_a_model() -> None:
    model: Any = tiny_model()
    average = average_of(model)
    seen = drive(model, EmaCallback(trainer_of(average), 0.75, 3), 1, 5)
    expected = 0.75 * (0.75 * seen[2] + 0.25 * seen[3]) + 0.25 * seen[4]
    found = whole(average)
    torch.testing.assert_close(found[next(iter(dict(model.named_parameters())))], expected)
    fitted = fit(found, skeleton(model.config), Path("average"))
    assert sum(map(torch.numel, fitted.values())) == sum(map(torch.numel, model.parameters()))


def test_no_average_exists_before_ema_start_and_export_reports_that(tmp_path: Path) -> None:
    model: Any = tiny_model()
    average = average_of(model)
    drive(model, EmaCallback(trainer_of(average), 0.9, 9), 1, 2)
    assert not average.has_begun and not average.parts
    with pytest.raises(CheckpointError, match="no moving average"):
        read_average(tmp_path / "checkpoint-2")


def test_an_average_of_format_1_continues_bit_by_bit(tmp_path: Path) -> None:
    """Format 1 has whole tensors, in one file for each rank."""
    straight: Any = tiny_model()
    uninterrupted = average_of(straight)
    drive(straight, EmaCallback(trainer_of(uninterrupted), 0.9, 2), 1, 4)
    stored = [(name, tensor.clone()) for name, tensor in whole(uninterrupted).items()]
    (tmp_path / "ema").mkdir()
    for rank in range(2):
        save_file(dict(stored[rank::2]), tmp_path / "ema" / f"rank_{rank:05d}.safetensors")

    resumed = average_of(straight)
    restore_average(tmp_path, resumed)
    for average in (uninterrupted, resumed):
        average.update(0.9)
    assert all(map(torch.equal, whole(resumed).values(), whole(uninterrupted).values()))
    other: Any = torch.nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="do not match this run"):
        restore_average(tmp_path, average_of(other))
