"""The size of a checkpoint by formula, against written ones (fp32: tests/invariants)."""

from __future__ import annotations

import pytest

from wikillm.config.load import load
from wikillm.plan.checkpoint import Written, checkpoint_bytes

SHAPE = [
    "model.preset=tiny", "model.hidden_size=64", "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2", "model.intermediate_size=128",
]  # fmt: skip
PARAMETERS, UNTIED = 336_448, 598_592

# bytes per parameter on the disk after two steps with a vocabulary of 4096, without the random
# states and headers
MEASURED = [
    (Written("fp32", None), True, 12.13),
    (Written("fp32", None, ranks=2), True, 12.18),
    (Written("bf16", None), True, 12.13),
    (Written("fp32", 0), True, 19.29),
    (Written("fp32", 1), True, 23.36),
    (Written("fp32", 1, ranks=2), True, 23.42),
    (Written("fp32", 2), True, 23.36),
    (Written("fp32", 3), True, 16.25),
    (Written("bf16", 0), True, 17.75),
    (Written("bf16", 1), True, 17.80),
    (Written("bf16", 3), True, 14.25),
    (Written("fp32", None, muon=True), True, 11.23),
    (Written("fp32", 0, muon=True), True, 18.39),
    (Written("fp32", 1, muon=True), True, 22.48),
    (Written("fp32", None, ema=True), True, 16.14),
    (Written("fp32", None), False, 12.08),
    (Written("fp32", 1), False, 20.13),
]


@pytest.mark.parametrize(("written", "tied", "measured"), MEASURED, ids=str)
def test_the_formula_gives_what_was_written(written: Written, tied: bool, measured: float) -> None:
    model = load("demo", [*SHAPE, f"model.tie_word_embeddings={str(tied).lower()}"]).config.model
    predicted = checkpoint_bytes(model, 4096, written) / (PARAMETERS if tied else UNTIED)
    assert measured <= predicted + 0.02, "a room check must not count too little"
    assert predicted == pytest.approx(measured, rel=0.025)


def test_an_unknown_vocabulary_gives_a_lower_bound() -> None:
    model = load("demo", SHAPE).config.model
    least = checkpoint_bytes(model, 4096, Written("fp32", 1), embedding_is_sure=False)
    assert least < checkpoint_bytes(model, 256, Written("fp32", 1))
    assert least > 20 * (PARAMETERS - 4096 * 64)
