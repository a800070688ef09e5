"""Runs with activation recomputation have the losses (L2) of one that keeps all activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.observed_runs import train_counting_gathers
from harness.reference import References
from harness.tiny_run import run


@pytest.fixture(scope="module")
def stock(references: References) -> dict[str, Any]:
    return references(2, deepspeed=None)


@pytest.mark.parametrize(
    ("kind", "recipe", "more"),
    [
        ("selective", None, ()),
        pytest.param("selective", "zero2", ("train.compile=layers",), marks=pytest.mark.deep),
        # An evaluation changes the order of gathers.
        ("selective", "zero3", ("train.eval_steps=4",)),
        (
            "full_but_attention",
            "zero2",
            ("train.sequence_parallel_size=2", "train.mlp_kernel=tiled"),
        ),
        pytest.param("true", "zero1", ("train.compile=layers",), marks=pytest.mark.deep),
    ],
)
def test_equal_losses(
    kind: str, recipe: str | None, more: tuple[str, ...], words: Any, stock: Any, tmp_path: Path
) -> None:
    found = run(
        2, words(tmp_path / "run", f"train.gradient_checkpointing={kind}", *more), deepspeed=recipe
    )
    assert found["code"] == 0, found["message"]
    kept = {
        "selective": "attention and matrix products",
        "full_but_attention": "attention",
        "true": "their input",
    }
    assert f"layers keep {kept[kind]}, recompute" in found["output"]
    assert found["losses"] == pytest.approx(stock["losses"], rel=2e-5)
    assert found["eval"][-1] == pytest.approx(stock["eval"][-1], rel=2e-5)


def test_a_resumed_run_may_switch(words: Any, stock: Any, tmp_path: Path) -> None:
    stopped = run(
        2,
        words(tmp_path / "run", "train.gradient_checkpointing=selective"),
        deepspeed="zero2",
        signal_at=2,
    )
    assert stopped["code"] == 75, stopped["message"]
    resumed = run(2, words(tmp_path / "run"), deepspeed="zero2", resume="auto")
    assert resumed["code"] == 0 and "recompute" not in resumed["output"], resumed["message"]
    assert resumed["losses"] == pytest.approx(stock["losses"], rel=2e-5)


def test_zero3_gathers_each_weight_once_more(words: Any, tmp_path: Path) -> None:
    counted = {}
    for kind in ("full", "selective"):
        more = (f"train.gradient_checkpointing={kind}", "train.max_steps=3")
        counted[kind] = run(
            2, words(tmp_path / kind, *more), train_counting_gathers, deepspeed="zero3"
        )["gathers"]
    assert counted["selective"] == counted["full"] and counted["full"]["(64, 32)"] > 0, counted
