"""The size of a checkpoint by formula equals that of written ones (fp32: tests/invariants)."""

from __future__ import annotations

import pytest

from wikillm.config.load import load
from wikillm.plan.checkpoint import checkpoint_bytes

SHAPE = [
    "model.preset=tiny", "model.hidden_size=64", "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2", "model.intermediate_size=128",
]  # fmt: skip
PARAMETERS = 336_448
MEASURED = 12.13  # bytes per parameter on the disk after two steps, with a vocabulary of 4,096


def test_the_formula_gives_the_size_of_written_checkpoints() -> None:
    predicted = checkpoint_bytes(load("demo", SHAPE).config.model, 4096) / PARAMETERS
    assert predicted + 0.02 >= MEASURED, "a room check must not count too little"
    assert predicted == pytest.approx(MEASURED, rel=0.025)


def test_an_unknown_vocabulary_gives_a_lower_bound() -> None:
    model = load("demo", SHAPE).config.model
    least = checkpoint_bytes(model, 4096, embedding_is_sure=False)
    assert least < checkpoint_bytes(model, 256)
    assert least > 12 * (PARAMETERS - 4096 * 64)
