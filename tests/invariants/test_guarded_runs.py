"""What guards a run: non-finite losses name their documents, damaged weights their rank."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from harness.ranks import run_ranks
from harness.sick_runs import (
    flip_a_bit_and_stop_in_evaluation,
    train_with_a_flipped_bit,
    train_with_losses,
    train_with_wrong_parts,
)
from harness.tiny_run import run

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.data.inspect.show import show_sample
from wikillm.data.store.store import Store


@pytest.mark.parametrize("recipe", [None, pytest.param("zero2", marks=pytest.mark.deep)])
def test_a_loss_that_is_not_finite_names_its_rank_and_documents(
    recipe: str | None, words: Any, shared: Path, tmp_path: Path
) -> None:
    """Rank 1's second micro-batch of step 6 has a NaN. Rank 0 reports its documents.

    The checkpoint of step 4 is still being written then, for longer than ranks wait at an exit.
    """
    more = ("train.per_device_train_batch_size=2", "train.exit_timeout_seconds=0.1")
    command = words(tmp_path / "run", *more)
    bad = {(5, 1, 1): math.nan}
    options = {"deepspeed": recipe, "save_seconds": 3.0}
    found, _ = run_ranks(train_with_losses, 2, command, bad, options)
    assert found["code"] == 5, found["message"]
    saved = [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert saved == ["checkpoint-4"] and "resume from the last checkpoint" in found["message"]
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


@pytest.mark.parametrize(
    ("world", "recipe", "flipped_at", "found_at"),
    [
        (3, None, 3, 4),
        pytest.param(2, "zero2", 4, 4, marks=pytest.mark.deep),
        pytest.param(2, "zero0", 1, 2, marks=pytest.mark.deep),
        pytest.param(2, None, 8, 8, marks=pytest.mark.deep),
    ],
)
def test_one_flipped_bit_in_a_weight_names_the_rank(
    world: int, recipe: str | None, flipped_at: int, found_at: int, words: Any, tmp_path: Path
) -> None:
    """The lowest bit of one weight of rank 1. Three ranks have a majority, two have none."""
    batch = ["train.per_device_train_batch_size=1", f"train.global_batch_tokens={world * 32}"]
    command = words(tmp_path / "run", *batch, "train.weight_check_steps=2")
    where = (flipped_at, 1, 0)
    results = run_ranks(train_with_a_flipped_bit, world, command, where, {"deepspeed": recipe})
    assert [found["code"] for found in results] == [7] * world, results[0]["message"]
    message = results[0]["message"]
    who = message.partition(": the ranks' weights differ at step ")[0]
    assert (f"differ at step {found_at}." in message) and ("rank 1 (" in who)
    assert ("rank 0 (" in who) == (world == 2) and "rank 2 (" not in who
    assert "model.layers.1.mlp.down_proj.weight" in message
    assert results[0]["exit"]["code"] == 7 and "Silent corruption" in results[0]["exit"]["reason"]
    # Checkpoints are written at steps 4 and 8: the one of the corrupted step is not.
    saved = [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert saved == (["checkpoint-4"] if found_at == 8 else [])


def test_a_stop_in_an_evaluation_saves_no_differing_weights(words: Any, tmp_path: Path) -> None:
    """No save is due at step 4: the stop asks for one, and the weights are compared before it."""
    command = words(
        tmp_path / "run",
        *("train.weight_check_steps=100", "train.save_steps=100", "train.eval_steps=4"),
    )
    results = run_ranks(flip_a_bit_and_stop_in_evaluation, 2, command, (4, 1, 0), {})
    assert [found["code"] for found in results] == [7, 7], results[0]["output"]
    assert "differ at step 4." in results[0]["message"]
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


@pytest.mark.deep
def test_healthy_ranks_agree_at_every_step(words: Any, tmp_path: Path) -> None:
    """Also at ZeRO-3, where the norms are kept whole, and in bf16 without DeepSpeed."""
    often = "train.weight_check_steps=1"
    for number, (recipe, more) in enumerate(
        [("zero3", ()), ("zero1", ()), (None, ("train.precision=bf16",))]
    ):
        found = run(2, words(tmp_path / f"run-{number}", often, *more), deepspeed=recipe)
        assert found["code"] == 0, found["message"]
        assert ("of the weights whole on every rank" in found["output"]) == (recipe == "zero3")


@pytest.mark.deep
@pytest.mark.parametrize("recipe", [None, "zero1", "zero3"])
@pytest.mark.parametrize(
    "more", [(), ("train.document_mask=on", "train.lr_scheduler_type=warmup_stable_decay")]
)
def test_the_self_check_changes_nothing(
    recipe: str | None, more: tuple[str, ...], words: Any, tmp_path: Path
) -> None:
    off = run(2, words(tmp_path / "off", *more, "train.self_check=off"), deepspeed=recipe)
    full = run(2, words(tmp_path / "full", *more, "train.self_check=full"), deepspeed=recipe)
    assert full["code"] == 0, full["message"]
    assert full["losses"] == off["losses"] and full["grad_norms"] == off["grad_norms"]
    lines = ("learning rates as planned", "at once", "finite on every rank", "first loss")
    assert all(line in full["output"] for line in lines), full["output"]
    assert "self-check" not in off["output"] and "a random model" not in full["output"]


@pytest.mark.deep
def test_the_self_check_finds_what_is_wrong(words: Any, tmp_path: Path) -> None:
    odd = words(tmp_path / "odd", "model.initializer_range=1.0", "train.self_check=quick")
    assert "warning: the first loss is" in run(1, odd)["output"]
    resumed = run(1, odd, resume="auto", allow_change=True)
    assert "the first loss is" not in resumed["output"]
    (found,) = run_ranks(train_with_wrong_parts, 1, words(tmp_path / "rate"), "rate")
    assert found["code"] == 3 and "not the planned ones" in found["message"]
    mixed = words(tmp_path / "rows", "train.self_check=full")
    (found,) = run_ranks(train_with_wrong_parts, 1, mixed, "rows")
    assert found["code"] == 3 and "depends on the other sequences" in found["message"]
