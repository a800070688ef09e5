"""Runs with the tiled MLP, in several chunks per micro-step, have the stock MLP's losses (L2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.observed_runs import train_counting_gathers
from harness.programs import train_with_small_tiles
from harness.tiny_run import run

TILED = ["train.mlp_kernel=tiled", "train.per_device_train_batch_size=2"]


@pytest.fixture(scope="module")
def stock(words: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(2, words(tmp_path_factory.mktemp("stock") / "run", TILED[1]))


@pytest.mark.parametrize(
    ("recipe", "checkpointing"),
    [
        pytest.param(None, "false", marks=pytest.mark.deep),
        ("zero2", "false"),
        ("zero3", "true"),
    ],
)
def test_equal_losses(
    recipe: str | None, checkpointing: str, words: Any, stock: Any, tmp_path: Path
) -> None:
    found = run(
        2,
        words(tmp_path / "run", *TILED, f"train.gradient_checkpointing={checkpointing}"),
        train_with_small_tiles,
        deepspeed=recipe,
    )
    assert "MLP: tiled, at most 24 rows (of 64 by 64 on cpu)" in found["output"]
    assert found["losses"] == pytest.approx(stock["losses"], rel=2e-5)
    assert found["eval"] == pytest.approx(stock["eval"], rel=2e-5)


def test_zero3_gathers_no_weight_more_often(words: Any, tmp_path: Path) -> None:
    counted = {}
    for kernel in ("stock", "tiled"):
        more = (f"train.mlp_kernel={kernel}", TILED[1], "train.max_steps=3")
        counted[kernel] = run(
            2, words(tmp_path / kernel, *more), train_counting_gathers, deepspeed="zero3"
        )["gathers"]
    assert counted["tiled"] == counted["stock"] and counted["stock"]["(64, 32)"] > 0, counted
