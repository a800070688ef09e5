"""Recipes (schedule, Muon, EMA) give the same run on every engine and after a resume.

test_equal_runs.py defines L1 and L2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.programs import tensor_digest
from harness.tiny_run import run

from wikillm.export.weights import read_average, read_safetensors

WSD = ["train.lr_scheduler_type=warmup_stable_decay", "train.lr_decay_share=0.5"]


def assert_resumes(
    world: int, recipe: str | None, words: list[str], again: list[str], folders: list[Path]
) -> None:
    """A run resumed after step 3 is bit-identical. `words` and `again` differ in run.dir."""
    whole = run(world, words, deepspeed=recipe)
    assert whole["code"] == 0, whole["message"]
    assert run(world, again, deepspeed=recipe, signal_at=2)["code"] == 75
    resumed = run(world, again, deepspeed=recipe, resume="auto")
    assert resumed["code"] == 0, resumed["message"]
    assert resumed["losses"] == whole["losses"] and resumed["eval"] == whole["eval"]
    assert len({tensor_digest(folder / "checkpoints" / "checkpoint-8") for folder in folders}) == 1


def metrics(run_dir: Path, name: str) -> dict[int, float]:
    records = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record[name] for record in records}


def test_a_schedule_resumes_bit_identical_and_is_logged_as_planned(
    words: Any, tmp_path: Path
) -> None:
    from wikillm.config.load import load
    from wikillm.plan.schedule import learning_rate_at

    parts = tmp_path / "parts"
    whole = tmp_path / "whole"
    assert_resumes(1, None, words(whole, *WSD), words(parts, *WSD), [whole, parts])
    train = load(None, words(whole, *WSD)).config.train
    planned = {
        step: learning_rate_at(train, step, max_steps=8, warmup_steps=2) for step in range(1, 9)
    }
    assert metrics(whole, "learning_rate") == pytest.approx(planned)


MUON = [
    "train.optimizer=muon",
    "train.max_grad_norm=0",
    "train.muon_learning_rate=0.01",
    "train.learning_rate=3e-3",
]
EMA = ["train.ema_decay=0.7", "train.ema_start=0.25"]


@pytest.fixture(scope="module")
def torchs_muon(words: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One rank without DeepSpeed: torch.optim.Muon."""
    result = run(1, words(tmp_path_factory.mktemp("muon") / "run", *MUON))
    assert result["code"] == 0, result["message"]
    return result


@pytest.mark.parametrize(
    ("world", "recipe"), [(1, None), pytest.param(2, "zero2", marks=pytest.mark.deep), (2, "zero3")]
)
def test_muon_is_one_run_on_every_engine_and_resumes_bit_identical(
    world: int, recipe: str | None, words: Any, torchs_muon: Any, tmp_path: Path
) -> None:
    """torch and DeepSpeed round Newton-Schulz differently in bf16, so 1e-4 (measured: 1e-5)."""
    # Training never reads the average, so the losses are the same with it.
    more = [*MUON, *EMA]
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    assert_resumes(world, recipe, words(whole, *more), words(parts, *more), [whole, parts])
    losses = metrics(whole, "loss")
    assert losses == pytest.approx(torchs_muon["losses"], rel=1e-4)
    assert losses[8] < losses[1] - 0.08, f"it should learn: {losses}"
    averages = [read_average(folder / "checkpoints" / "checkpoint-8") for folder in (whole, parts)]
    weights = dict(read_safetensors(whole / "checkpoints" / "checkpoint-8" / "model.safetensors"))
    assert averages[0].keys() == averages[1].keys() == weights.keys()
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())
    far = max((averages[0][name] - value).abs().max() for name, value in weights.items())
    assert 0 < far < 0.05


def test_muon_refuses_what_it_cannot(words: Any, tmp_path: Path) -> None:
    offload = run(1, words(tmp_path / "b", *MUON), deepspeed="zero2_offload")
    assert offload["code"] == 2
    assert "Muon does not work with offload_optimizer" in offload["message"]
