"""Runs whose layers are recorded and replayed against stock ones: the same losses, with what DeepSpeed does around them.

The graphs are those of `harness.recorded_graph`: without a GPU there are no others. On one: tests/gpu.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.programs import train_with_recorded_graphs
from harness.tiny_run import run

GRAPHS, TWO_MICRO_STEPS = "train.cuda_graphs=on", "train.per_device_train_batch_size=2"
REPLAYS = (
    2 * 2 * (8 * 2 + 1)
)  # forward and backward of 2 layers: 8 steps of 2 micro-steps, and the comparison at the start


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        (None, ("train.document_mask=on",)),
        ("zero0", ()),
        ("zero1", ("train.merged_projections=on", "train.eval_steps=4")),
        ("zero2", ("train.mlp_kernel=tiled",)),
    ],
)
def test_equal_losses(recipe: str | None, more: tuple[str, ...], words: Any, tmp_path: Path) -> None:
    stock = run(2, words(tmp_path / "stock", TWO_MICRO_STEPS, *more), deepspeed=recipe)
    found = run(
        2, words(tmp_path / "run", GRAPHS, TWO_MICRO_STEPS, *more), train_with_recorded_graphs, deepspeed=recipe
    )
    assert found["code"] == 0, found["message"]
    assert "layers recorded, with the gradients of the layers themselves" in found["output"]
    assert found["losses"] == stock["losses"] and found["grad_norms"] == stock["grad_norms"]
    assert found["eval"] == stock["eval"]
    assert found["replays"] == REPLAYS


def test_a_resumed_run_records_anew_and_may_have_been_stock(words: Any, tmp_path: Path) -> None:
    whole = run(2, words(tmp_path / "whole"), deepspeed="zero1")
    stopped = run(2, words(tmp_path / "run"), deepspeed="zero1", signal_at=4)
    assert stopped["code"] == 75, stopped["message"]
    resumed = run(2, words(tmp_path / "run", GRAPHS), train_with_recorded_graphs, deepspeed="zero1", resume="auto")
    assert resumed["code"] == 0 and resumed["replays"], resumed["message"]
    assert resumed["losses"] == whole["losses"]
