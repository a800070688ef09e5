"""A checkpoint resumes on another number of ranks, at another ZeRO stage, without DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.ledgers import assert_proven
from harness.tiny_run import run

Engine = tuple[int, str | None]
"""Number of ranks, and the DeepSpeed recipe; None is plain data parallel."""

ROUTES: list[tuple[str, list[Engine]]] = [
    ("adamw", [(2, "zero2"), (1, None), (2, "zero3"), (1, "zero1")]),
    ("muon", [(1, "zero1"), (2, None), (1, "zero2")]),
]


@pytest.mark.parametrize(("optimizer", "route"), ROUTES)
def test_one_run_over_several_engines(
    optimizer: str, route: list[Engine], words: Any, references: Any, tmp_path: Path
) -> None:
    """Each part of the run is on another engine: the same tokens, the same losses."""
    more = [f"train.optimizer={optimizer}", "train.max_grad_norm=0"]
    # Newton-Schulz in bf16 rounds differently in torch's and DeepSpeed's Muon.
    close = 1e-3 if optimizer == "muon" else 1e-5
    whole = references(1, *more)
    folder = tmp_path / "run"
    for number, (ranks, recipe) in enumerate(route):
        is_last = number == len(route) - 1
        stop = {} if is_last else {"signal_at": 2 * number + 1}
        micro = f"train.per_device_train_batch_size={4 // ranks}"
        found = run(
            ranks,
            words(folder, *more, micro),
            deepspeed=recipe,
            resume="auto" if number else "never",
            **stop,
        )
        assert found["code"] == (0 if is_last else 75), found["message"] + found["output"]
    assert found["losses"] == pytest.approx(whole["losses"], rel=close)
    assert found["eval"] == pytest.approx(whole["eval"], rel=close)
    assert_proven(folder, 8, segments=len(route))
