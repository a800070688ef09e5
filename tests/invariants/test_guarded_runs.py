"""What guards a run: a loss that is not finite names its documents."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from harness.ranks import run_ranks
from harness.sick_runs import train_with_losses

from wikillm.data.inspect.show import show_sample
from wikillm.data.store.store import Store


@pytest.mark.parametrize("recipe", [None, pytest.param("zero2", marks=pytest.mark.deep)])
def test_a_loss_that_is_not_finite_names_its_rank_and_documents(
    recipe: str | None, words: Any, shared: Path, tmp_path: Path
) -> None:
    """Rank 1's second micro-batch of step 6 has a NaN. Rank 0 reports its documents."""
    command = words(tmp_path / "run", "train.per_device_train_batch_size=2")
    bad = {(5, 1, 1): math.nan}
    found, _ = run_ranks(train_with_losses, 2, command, bad, {"deepspeed": recipe})
    assert found["code"] == 5, found["message"]
    assert "NaN or infinite at step 6" in found["message"]

    # 8 sequences a step: micro-step 1 of rank 1 reads the last two of 40 to 47.
    assert ", micro-step 2, samples 46 to 47: loss nan" in found["message"]
    store = Store.open(shared / "store" / "store")
    parts = [
        part
        for sample in (46, 47)
        for part in show_sample(store, sample, sequence_length=32, seed=42, window_shards=1)[
            "parts"
        ]
    ]
    wanted = list(dict.fromkeys((part["source"], part["offset"]) for part in parts))
    record = json.loads((tmp_path / "run" / "diverged.json").read_text())
    (batch,) = record["micro_batches"]
    assert [(each["source"], each["offset"]) for each in batch["documents"]] == wanted
    assert (record["step"], batch["rank"], batch["samples"]) == (6, 1, [46, 48])
    assert batch["nonfinite"] == {"loss": "nan"}
    source, offset = wanted[0]
    assert f"{source}: byte {offset:,}" in found["message"]
