"""Checkpoints of versions up to 0.2 resume on the ranks and at the stage that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.old_checkpoints import train_in_the_old_format
from harness.ranks import run_ranks
from harness.tiny_run import run

from wikillm.checkpoints.latest import find_complete


@pytest.mark.parametrize(
    "recipe",
    [None, "zero2", pytest.param("zero3", marks=pytest.mark.deep)],
)
def test_format_1_resumes_bit_for_bit_and_only_on_its_own_ranks_and_stage(
    recipe: str | None, words: Any, references: Any, tmp_path: Path
) -> None:
    """The next checkpoint is of the present format, and so fits any number of ranks."""
    folder = tmp_path / "run"
    options = {"deepspeed": recipe, "signal_at": 3}
    for found in run_ranks(train_in_the_old_format, 2, words(folder), options):
        assert found["code"] == 75, found["message"]
    old = find_complete(folder)
    assert (old / "trainer_state.json").is_file() and not (old / "ranks").exists()

    refused = run(1, words(folder), deepspeed=recipe, resume="auto")
    assert refused["code"] == 6 and "world_size: 2 then, 1 now" in refused["message"]

    on = run(2, words(folder), deepspeed=recipe, resume="auto")
    assert on["code"] == 0, on["message"]
    assert on["losses"] == references(2, deepspeed=recipe)["losses"]
    assert (find_complete(folder) / "ranks" / "rank_00001.json").is_file()
