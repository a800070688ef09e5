"""Runs with an 8-bit output layer match the chunked loss within 8-bit rounding, not exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.reference import References
from harness.tiny_run import run


@pytest.mark.parametrize("recipe", [None, "zero3"])
def test_losses_stay_near_those_of_the_chunked_loss(
    recipe: str | None, words: Any, references: References, tmp_path: Path
) -> None:
    plain = references(2, deepspeed=recipe)
    found = run(2, words(tmp_path / "fp8", "train.loss_kernel=fp8"), deepspeed=recipe)
    assert "linear cross entropy: fp8" in found["output"]
    assert found["losses"] == pytest.approx(plain["losses"], rel=2e-3)
    assert found["losses"] != pytest.approx(plain["losses"], rel=1e-6), "it multiplies in 8 bit"
    assert found["eval"] == pytest.approx(plain["eval"], rel=2e-3)
