"""Loss spikes in real runs: reported with their documents, or left out after going back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.ledgers import replay
from harness.ranks import run_ranks
from harness.sick_runs import train_with_bad_samples

from wikillm.checkpoints.latest import find_complete
from wikillm.checkpoints.manifest import read_state
from wikillm.data.read.corpus import StoredCorpus
from wikillm.data.read.loader import Samples
from wikillm.data.store.store import Store
from wikillm.ledger.audit import audit_run
from wikillm.observe.sinks import read_records
from wikillm.train.spikes import read_skips

BATCH = 8
LONG = (
    "train.max_steps=24", "train.eval_steps=24", "train.save_steps=6", "train.spike_window=12",
    "train.per_device_train_batch_size=2",
)  # fmt: skip


def expected_rows(store: Path, samples: range) -> list[str]:
    """The digests of the samples' inputs, as the plan has them."""
    opened = Store.open(store)
    order = StoredCorpus(opened, 1).order(32, 42)
    rows = Samples(opened.train, order, 1).batch(list(samples))["input_ids"]
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in rows]


def spikes_of(run: Path) -> list[dict[str, Any]]:
    return [event for event in read_records(run / "events.jsonl") if event["kind"] == "spike"]


@pytest.mark.parametrize(
    "recipe", [None, *(pytest.param(f"zero{n}", marks=pytest.mark.deep) for n in range(4))]
)
def test_a_spike_is_skipped_and_the_next_samples_are_as_planned(
    recipe: str | None, words: Any, shared: Path, tmp_path: Path
) -> None:
    """Step 15 reads bad samples: ten times the loss. Back at 12, those of steps 14 and 15 go.

    The checkpoint of step 12 is still being written then, for longer than ranks wait at an exit.
    """
    more = ("train.spikes=skip", "train.weight_check_steps=1", "train.exit_timeout_seconds=0.1")
    command = words(tmp_path / "run", *LONG, *more)
    bad = [(14 * BATCH, 15 * BATCH)]
    options = {"deepspeed": recipe, "save_seconds": 1.5}
    results = run_ranks(train_with_bad_samples, 2, command, bad, 10.0, options)
    found = results[0]
    assert found["code"] == 0, found["message"] + found["output"]
    assert "checkpoint-12 (step 12)" in found["output"]
    skips = json.loads((tmp_path / "run" / "skips.json").read_text())["skips"]
    assert [(each["first"], each["stop"]) for each in skips] == [(13 * BATCH, 15 * BATCH)]
    (spike,) = spikes_of(tmp_path / "run")
    assert spike["steps"] == [15, 15] and spike["action"] == "skip"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"{spike['loss']:.4f}" in page and "resumed before step 13" in page
    assert spike["worst_micro_batch"]["documents"]

    assert (found["built"], found["alive"]) == (2, 0), "the first model was freed"
    assert found["phases"] == {"verify": {"model"}, "wait": {"supply"}}, "their limits are long"

    # All 24 steps, without the samples of two: each rank has its part of the planned rows.
    planned = [*range(13 * BATCH), *range(15 * BATCH, 26 * BATCH)]
    rows = expected_rows(shared / "store" / "store", range(26 * BATCH))
    for step in range(24):
        of_step = [rows[sample] for sample in planned[step * BATCH : (step + 1) * BATCH]]
        of_step_and_rank = np.array(of_step).reshape(2, 2, 2)  # micro-step, rank, row
        for rank, result in enumerate(results):
            assert result["read"][step] == of_step_and_rank[:, rank].ravel().tolist()
    state = read_state(find_complete(tmp_path / "run"))
    assert state["consumed_samples"] == 26 * BATCH
    assert [(each["first"], each["stop"]) for each in state["skipped"]] == [(104, 120)]
    assert audit_run(tmp_path / "run").is_proven
    losses = found["losses"]
    assert sorted(losses) == list(range(1, 25)) and max(losses.values()) < 8
    if recipe is not None:  # one of the deep cases
        again, _ = run_ranks(replay, 2, str(tmp_path / "run"), 16, str(tmp_path / "work"))
        assert again["verdict"] == "data" and again["checkpoint"] == "checkpoint-12"


@pytest.mark.deep
def test_max_skips_ends_the_run_and_a_larger_value_continues_it(words: Any, tmp_path: Path) -> None:
    """Steps 14 and 19 read bad samples, and one skip is allowed. Then a new start allows two."""
    command = words(tmp_path / "run", *LONG, "train.spikes=skip", "train.max_skips=1")
    bad = [(13 * BATCH, 14 * BATCH), (20 * BATCH, 21 * BATCH)]
    spent, _ = run_ranks(train_with_bad_samples, 2, command, bad, 10.0, {})
    assert spent["code"] == 5 and spent["exit"]["code"] == 5, spent["output"]
    assert "spiked again, at step 19" in spent["message"] and "max_skips=1" in spent["message"]
    (first,) = read_skips(tmp_path / "run")
    assert (first.first, first.stop) == (12 * BATCH, 14 * BATCH)
    assert find_complete(tmp_path / "run").name == "checkpoint-18"

    more = words(tmp_path / "run", *LONG, "train.spikes=skip", "train.max_skips=2")
    resume = {"resume": "auto"}
    found, _ = run_ranks(train_with_bad_samples, 2, more, bad, 10.0, resume)
    assert found["code"] == 0, found["message"]
    assert [(each.first, each.stop) for each in read_skips(tmp_path / "run")] == [
        (12 * BATCH, 14 * BATCH),
        (20 * BATCH, 21 * BATCH),  # this start began at step 18
    ]
    state = read_state(find_complete(tmp_path / "run"))
    assert (state["step"], state["consumed_samples"]) == (24, 27 * BATCH)
    assert [each["first"] for each in state["skipped"]] == [12 * BATCH, 20 * BATCH]


@pytest.mark.deep
def test_a_spike_before_the_first_checkpoint_restarts_at_step_0(words: Any, tmp_path: Path) -> None:
    command = words(tmp_path / "run", *LONG, "train.spikes=skip", "train.save_steps=99")
    bad = [(13 * BATCH, 14 * BATCH)]
    options = {"deepspeed": "zero1"}
    (found,) = run_ranks(train_with_bad_samples, 1, command, bad, 10.0, options)
    assert found["code"] == 0, found["message"]
    assert (found["built"], found["alive"]) == (2, 0)
    clean = words(tmp_path / "clean", *LONG, "train.spikes=report", "train.save_steps=99")
    (other,) = run_ranks(train_with_bad_samples, 1, clean, [], 1.0, options)
    assert {step: found["losses"][step] for step in range(1, 13)} == {
        step: other["losses"][step] for step in range(1, 13)
    }
    assert not spikes_of(tmp_path / "clean")


@pytest.mark.deep
def test_long_spikes_are_reported_and_change_nothing(words: Any, tmp_path: Path) -> None:
    """Ten times the loss for 1, 5 and 50 steps, with log lines each ten steps."""
    steps = ("train.max_steps=120", "train.eval_steps=120", "train.save_steps=120")
    command = words(
        tmp_path / "run", *LONG, *steps, "train.logging_steps=10", "train.spike_window=32"
    )
    command = [word for word in command if word not in LONG[:3]]
    bad = [(35, 36), (41, 46), (60, 110)]
    windows = [(first * BATCH, stop * BATCH) for first, stop in bad]
    (found,) = run_ranks(train_with_bad_samples, 1, command, windows, 10.0, {})
    assert found["code"] == 0, found["message"]
    reported = [
        step
        for event in spikes_of(tmp_path / "run")
        for step in range(event["steps"][0], event["steps"][1] + 1)
    ]
    # After a whole window of 32 the high loss is the usual one.
    assert reported == [36, *range(42, 47), *range(61, 93)]
    assert found["output"].count("loss spike at") == 3
