"""Runs whose head multiplies in 8 bit against the chunked loss: losses within 8-bit rounding, not equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.programs import train_with_options
from harness.ranks import run_ranks


def run(words: list[str], recipe: str | None) -> dict[str, Any]:
    results = run_ranks(train_with_options, 2, words, {"deepspeed": recipe})
    assert all(result["code"] == 0 for result in results), [result["message"] for result in results]
    return dict(results[0])


@pytest.mark.parametrize("recipe", [None, "zero3"])
def test_losses_stay_near_those_of_the_chunked_loss(recipe: str | None, words: Any, tmp_path: Path) -> None:
    plain = run(words(tmp_path / "plain"), recipe)
    found = run(words(tmp_path / "fp8", "train.loss_kernel=fp8"), recipe)
    assert "linear cross entropy: fp8" in found["output"]
    assert found["losses"] == pytest.approx(plain["losses"], rel=2e-3)
    assert found["losses"] != pytest.approx(plain["losses"], rel=1e-6), "it multiplies in 8 bit"
    assert found["eval"] == pytest.approx(plain["eval"], rel=2e-3)
