"""Runs with merged projections against stock ones: equal losses at every ZeRO stage, L2, and switched at a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.programs import train_counting_gathers
from harness.tiny_run import run

MERGED = "train.merged_projections=on"


@pytest.fixture(scope="module")
def stock(words: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(2, words(tmp_path_factory.mktemp("stock") / "run"), deepspeed=None)


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        (None, ()),
        ("zero1", ()),
        ("zero2", ("train.mlp_kernel=tiled",)),
        ("zero2", ("train.compile=layers",)),
        ("zero3", ("train.gradient_checkpointing=true",)),
    ],
)
def test_equal_losses(recipe: str | None, more: tuple[str, ...], words: Any, stock: Any, tmp_path: Path) -> None:
    found = run(2, words(tmp_path / "run", MERGED, *more), deepspeed=recipe)
    assert found["code"] == 0, found["message"]
    is_tiled = "train.mlp_kernel=tiled" in more
    wanted = "merged, q k v (the MLP is tiled)" if is_tiled else "merged, q k v and gate up"
    assert f"projections: {wanted}" in found["output"]
    assert found["losses"] == pytest.approx(stock["losses"], rel=2e-5)
    assert found["eval"] == pytest.approx(stock["eval"], rel=2e-5)


def test_with_shared_sequences_of_fewer_key_heads_than_ranks(words: Any, tmp_path: Path) -> None:
    """Its attention takes a view of the module, which merged projections must not hide; with a mask SDPA reads it."""
    shared = ("train.sequence_parallel_size=2", "model.num_key_value_heads=1", "train.document_mask=on")
    stock = run(2, words(tmp_path / "stock", *shared), deepspeed="zero2")
    found = run(2, words(tmp_path / "merged", MERGED, *shared), deepspeed="zero2")
    assert stock["code"] == found["code"] == 0, found["message"]
    assert found["losses"] == pytest.approx(stock["losses"], rel=2e-5)


def test_a_resumed_run_may_switch(words: Any, stock: Any, tmp_path: Path) -> None:
    """Stopped with merged projections, resumed without: the checkpoint is the one that a stock run writes."""
    stopped = run(2, words(tmp_path / "run", MERGED), deepspeed="zero2", signal_at=2)
    assert stopped["code"] == 75, stopped["message"]
    resumed = run(2, words(tmp_path / "run"), deepspeed="zero2", resume="auto")
    assert resumed["code"] == 0 and "projections: merged" not in resumed["output"], resumed["message"]
    assert resumed["losses"] == pytest.approx(stock["losses"], rel=2e-5)


def test_zero3_gathers_no_weight_more_often(words: Any, tmp_path: Path) -> None:
    counted = {}
    for switch in ("off", "on"):
        more = (f"train.merged_projections={switch}", "train.max_steps=3")
        counted[switch] = run(2, words(tmp_path / switch, *more), train_counting_gathers, deepspeed="zero3")["gathers"]
    assert counted["on"] == counted["off"] and counted["on"]["(64, 32)"] > 0, counted
