"""Switches of how the model computes give the run without them (L2; 8-bit products: rounding)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.observed_runs import train_counting_gathers
from harness.programs import train_with_small_tiles
from harness.reference import References
from harness.tiny_run import run

STOCK = "train.loss_kernel=stock"
LAYERS = "train.compile=layers"
PARTS = "train.compile=elementwise"
TILED = "train.mlp_kernel=tiled"
SHARED = "train.sequence_parallel_size=2"
KEEP = "train.gradient_checkpointing="
EVALUATES = "train.eval_steps=4"  # changes the order of gathers; evaluation uses stock code

SAID = {
    STOCK: "linear cross entropy: stock",
    LAYERS: "compile    2 layers",
    PARTS: "compile    norms, rotation",
    TILED: "MLP: tiled",
    f"{KEEP}selective": "layers keep attention and matrix products, recompute",
    f"{KEEP}full_but_attention": "layers keep attention, recompute",
    f"{KEEP}true": "layers keep their input, recompute",
}


def deep(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.deep)


@pytest.mark.parametrize(
    ("world", "recipe", "switches"),
    [
        (1, "zero1", [STOCK]),
        (2, None, [STOCK]),
        (2, "zero3", [STOCK]),
        deep(1, "zero2", [LAYERS]),
        deep(2, None, [PARTS]),
        deep(2, "zero2", [PARTS, TILED]),
        (2, "zero3", [PARTS, f"{KEEP}selective", EVALUATES]),
        (2, None, [f"{KEEP}selective"]),
        deep(2, "zero2", [f"{KEEP}selective", LAYERS]),
        (2, "zero3", [f"{KEEP}selective", EVALUATES]),
        (2, "zero2", [f"{KEEP}full_but_attention", SHARED, TILED]),
        deep(2, "zero1", [f"{KEEP}true", LAYERS]),
    ],
    ids=str,
)
def test_equal_losses(
    world: int,
    recipe: str | None,
    switches: list[str],
    words: Any,
    references: References,
    tmp_path: Path,
) -> None:
    """The reference is one rank with the fused loss and nothing else."""
    one = references(1, deepspeed="zero1")
    assert "linear cross entropy: chunked" in one["output"]
    found = run(world, words(tmp_path / "run", *switches), deepspeed=recipe)
    assert found["code"] == 0, found["message"]
    assert all(SAID[switch] in found["output"] for switch in switches if switch in SAID)
    assert found["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert found["grad_norms"] == pytest.approx(one["grad_norms"], rel=5e-3)
    assert found["eval"][-1] == pytest.approx(one["eval"][-1], rel=2e-5)


@pytest.mark.parametrize(
    ("recipe", "kept"), [deep(None, "false"), ("zero2", "false"), ("zero3", "true")]
)
def test_several_tiles_in_a_micro_batch(
    recipe: str | None, kept: str, words: Any, references: References, tmp_path: Path
) -> None:
    one = references(1, deepspeed="zero1")
    more = (TILED, f"{KEEP}{kept}", "train.per_device_train_batch_size=2")
    found = run(2, words(tmp_path / "run", *more), train_with_small_tiles, deepspeed=recipe)
    assert "MLP: tiled, at most 24 rows (of 64 by 64 on cpu)" in found["output"]
    assert found["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert found["eval"] == pytest.approx(one["eval"], rel=2e-5)


@pytest.mark.parametrize("recipe", [None, "zero3"])
def test_products_in_8_bit_stay_near(
    recipe: str | None, words: Any, references: References, tmp_path: Path
) -> None:
    plain = references(2, deepspeed=recipe)
    found = run(2, words(tmp_path / "fp8", "train.loss_kernel=fp8"), deepspeed=recipe)
    assert "linear cross entropy: fp8" in found["output"]
    assert found["losses"] == pytest.approx(plain["losses"], rel=2e-3)
    assert found["losses"] != pytest.approx(plain["losses"], rel=1e-6), "it multiplies in 8 bit"
    assert found["eval"] == pytest.approx(plain["eval"], rel=2e-3)


@pytest.mark.parametrize(
    "pair", [[f"{KEEP}full", f"{KEEP}selective"], ["train.mlp_kernel=stock", TILED]]
)
def test_zero3_gathers_no_weight_more_often(pair: list[str], words: Any, tmp_path: Path) -> None:
    counted = []
    for word in pair:
        more = (word, "train.per_device_train_batch_size=2", "train.max_steps=3")
        found = run(2, words(tmp_path / word, *more), train_counting_gathers, deepspeed="zero3")
        counted.append(found["gathers"])
    assert counted[0] == counted[1] and counted[0]["(64, 32)"] > 0, counted
