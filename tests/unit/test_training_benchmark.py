"""What `benchmarks/train.py` would do on a GPU, as far as it can be known without one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from wikillm.config.load import load
from wikillm.plan.memory import memory_per_rank
from wikillm.plan.run_plan import make_plan
from wikillm.plan.strategy import Loss, Strategy
from wikillm.plan.workload import Workload

GPU_BYTES = 84_900_000_000
"""An H100's, as the planner knows it."""


@pytest.fixture
def benchmark(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(repo), *sys.path])  # which the script changes on import
    return importlib.import_module("benchmarks.train")


def words(shape: Any) -> list[str]:
    return [
        *shape.words,
        "data.path=corpus.jsonl",
        "train.max_steps=1",
        f"train.sequence_length={shape.length}",
    ]


def test_every_contender_has_the_presets_vocabulary(benchmark: Any, tmp_path: Path) -> None:
    """The plan, made with the benchmark's tokenizer, and the count that gives MFU."""
    processes = importlib.import_module("benchmarks.contender_process")
    for shape in benchmark.GPU_SHAPES.values():
        resolved = load(None, processes.words_of(shape, tmp_path, "wikillm"))
        plan = make_plan(resolved, world_size=1, tokenizer_length=260, train_tokens=10**7)
        assert plan.vocab_size == 151_936 and resolved.config.model.vocab_size == plan.vocab_size
        assert plan.flops_per_token == benchmark.flops_of(shape)


def test_shapes_fit_and_the_stock_trainer_beside_them(benchmark: Any) -> None:
    """By formula. The stock logits of 64 sequences alone are 70 GB, so there is no ratio."""

    def takes(shape: Any, loss: Loss) -> int:
        config = load(None, words(shape)).config
        kind = config.train.gradient_checkpointing
        strategy = Strategy("ddp", 0, 1, 1, shape.batch, 1, "bf16", checkpointing=kind, loss=loss)
        return memory_per_rank(Workload(config.model, 151_936, shape.length), strategy).total

    for name, shape in benchmark.GPU_SHAPES.items():
        assert takes(shape, "chunked") < GPU_BYTES, name
        assert (takes(shape, "stock") < GPU_BYTES) == (name != "120m-512-64"), name


def test_two_models_are_never_compared(benchmark: Any) -> None:
    same = {
        "hf": {"losses": [11.98, 7.0]},
        "wikillm": {"losses": [11.97, 9.0]},
        "bare": {"error": "out of memory"},
    }
    assert benchmark.differ(same) is None
    for loss, said in ((5.95, "5.9500"), (float("nan"), "nan")):
        assert f"hf 11.9800, wikillm {said}" in benchmark.differ(
            same | {"wikillm": {"losses": [loss, 9.0]}}
        )


def test_a_failed_contender_says_why(benchmark: Any) -> None:
    log = (
        'step 1\nTraceback (most recent call last):\n  File "x.py"\n'
        "torch.OutOfMemoryError: CUDA out of memory. Tried 9 GiB\n"
    )
    assert benchmark.reason(log) == "out of memory"
    assert (
        benchmark.reason("ConfigError: no such key.\n  got it\n  fix: leave it out\n")
        == "ConfigError: no such key."
    )
    assert benchmark.reason("hf ended with -9:\nstep 3") == "killed by signal 9, perhaps for memory"
    assert benchmark.reason("") == "ended without a word"


@pytest.mark.slow
@pytest.mark.deep
def test_stretches_and_visits_count_every_step_once(benchmark: Any) -> None:
    """As on a GPU: a turn is two steps, and the contender comes twice."""
    fields = (
        "hidden_size=16 num_hidden_layers=1 num_attention_heads=2 vocab_size=512 "
        "num_key_value_heads=1 intermediate_size=32"
    )
    shape = benchmark.Shape(
        "s", ("model.preset=tiny", *(f"model.{f}" for f in fields.split())), 2, 16
    )
    found = benchmark.measure(shape, ["wikillm"], 2, 1, visits=2, stretch=2)
    for name, result in found.items():
        assert "error" not in result, result
        assert len(result["wall"]) == len(result["cpu"]) == 2 * 2, name
        assert len(result["losses"]) == (1 + 2) * 2, "those of the last visit, warm-up included"
    assert benchmark.differ(found) is None
