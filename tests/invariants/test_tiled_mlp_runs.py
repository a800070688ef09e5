"""Runs with the tiled MLP, in several chunks per micro-step, against the stock one: equal losses, L2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.programs import train_counting_gathers, train_with_small_tiles
from harness.ranks import run_ranks

TILED = ["train.mlp_kernel=tiled", "train.per_device_train_batch_size=2"]


def run(words: list[str], recipe: str | None) -> dict[str, Any]:
    results = run_ranks(train_with_small_tiles, 2, words, {"deepspeed": recipe})
    assert all(result["code"] == 0 for result in results), [result["message"] for result in results]
    return dict(results[0])


@pytest.fixture(scope="module")
def stock(words: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(words(tmp_path_factory.mktemp("stock") / "run", TILED[1]), None)


@pytest.mark.parametrize(("recipe", "checkpointing"), [(None, "false"), ("zero2", "false"), ("zero3", "true")])
def test_equal_losses(recipe: str | None, checkpointing: str, words: Any, stock: Any, tmp_path: Path) -> None:
    found = run(words(tmp_path / "run", *TILED, f"train.gradient_checkpointing={checkpointing}"), recipe)
    assert "MLP: tiled, 24 rows (of 64 by 64 on cpu)" in found["output"]
    assert found["losses"] == pytest.approx(stock["losses"], rel=2e-5)
    assert found["eval"] == pytest.approx(stock["eval"], rel=2e-5)


def test_zero3_gathers_no_weight_more_often(words: Any, tmp_path: Path) -> None:
    counted = {}
    for kernel in ("stock", "tiled"):
        more = (f"train.mlp_kernel={kernel}", TILED[1], "train.max_steps=3")
        results = run_ranks(train_counting_gathers, 2, words(tmp_path / kernel, *more), {"deepspeed": "zero3"})
        assert all(result["code"] == 0 for result in results), [result["message"] for result in results]
        counted[kernel] = results[0]["gathers"]
    assert counted["tiled"] == counted["stock"] and counted["stock"]["(64, 32)"] > 0, counted
