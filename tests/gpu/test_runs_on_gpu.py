"""Whole runs on one GPU: every ZeRO stage, how often the host waits, memory against the plan.

None of these tests has been run on a GPU yet: without one each is a skip with that reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.observed_runs import train_noting_waits
from harness.programs import train_with_options
from harness.ranks import run_ranks

from wikillm.observe.sinks import read_metrics

pytestmark = pytest.mark.gpu
BF16, TWO_MICRO_STEPS = (
    "train.precision=bf16",
    "train.per_device_train_batch_size=4",
)  # of a global batch of 8 sequences


def run(words: list[str], program: Any = train_with_options, **options: Any) -> dict[str, Any]:
    (result,) = run_ranks(program, 1, words, options, DS_ACCELERATOR="cuda")
    assert result["code"] == 0, result["message"]
    return dict(result)


@pytest.fixture(scope="module")
def plain(words: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(words(tmp_path_factory.mktemp("plain") / "run", BF16, TWO_MICRO_STEPS))


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("zero1", ()),
        ("zero2", ()),
        ("zero3", ()),
        (None, ("train.compile=layers",)),
        ("zero2", ("train.compile=layers",)),
        ("zero3", ("train.compile=elementwise", "train.gradient_checkpointing=selective")),
    ],
)
def test_every_stage_trains_as_plain_data_parallel(
    recipe: str | None, more: tuple[str, ...], words: Any, plain: dict[str, Any], tmp_path: Path
) -> None:
    """NCCL, bf16: losses within its rounding, falling, and a checkpoint at the end."""
    found = run(words(tmp_path / "run", BF16, TWO_MICRO_STEPS, *more), deepspeed=recipe)
    assert found["losses"] == pytest.approx(plain["losses"], rel=5e-3)
    assert found["losses"][8] < found["losses"][1] - 0.1
    assert found["eval"] == pytest.approx(plain["eval"], rel=5e-3)
    assert (tmp_path / "run/checkpoints/checkpoint-8").is_dir()


@pytest.mark.parametrize("recipe", [None, "zero2"])
def test_muon_trains(recipe: str | None, words: Any, tmp_path: Path) -> None:
    muon = ("train.optimizer=muon", "train.max_grad_norm=0", BF16)
    found = run(words(tmp_path / "run", *muon), deepspeed=recipe)
    assert found["losses"][8] < found["losses"][1] - 0.1


@pytest.mark.parametrize(
    ("recipe", "more", "every_step"),
    [
        (None, (), 0),
        (None, ("train.document_mask=on",), 0),
        # DeepSpeed, for each of two groups of parameters: a number copied to the device and read
        # again where it marks infinite norms, and a look for that mark before it clips.
        ("zero2", (), 6),
    ],
)
def test_the_host_waits_once_per_logging_step(
    recipe: str | None, more: tuple[str, ...], every_step: int, words: Any, tmp_path: Path
) -> None:
    """As torch's sync debug mode sees it, which does not see events and `torch.cuda.synchronize`.

    `tests/dist/test_host_reads.py` counts what Python reads, on a CPU; not copies to the device,
    nor what operators read.
    """
    of_run = (
        "train.max_steps=6",
        "train.logging_steps=4",
        "train.save_steps=99",
        "train.eval_steps=99",
    )
    found = run(
        words(tmp_path / "run", *of_run, BF16, TWO_MICRO_STEPS, *more),
        train_noting_waits,
        deepspeed=recipe,
    )
    waits = {step: found["waits"].get(step, []) for step in (2, 3, 4, 5)}
    for step, places in waits.items():
        assert len(places) <= every_step + (step == 4), (step, places)


def test_memory_is_what_was_planned(words: Any, tmp_path: Path) -> None:
    """120M with 32 x 512 tokens: allocated memory against the plan without context."""
    shape = (
        "train.sequence_length=512",
        "train.per_device_train_batch_size=32",
        "train.global_batch_tokens=16384",
    )
    line = words(
        tmp_path / "run",
        BF16,
        *shape,
        "train.max_steps=3",
        "train.eval_steps=99",
        "train.save_steps=99",
    )
    kept = [word for word in line if not word.startswith("model.")]
    run([*kept, "model.preset=120m", "model.vocab_size=151936"])
    outcome = json.loads((tmp_path / "run/outcome.json").read_text())
    planned = outcome["predicted"]
    measured = outcome["measured"]["memory_bytes"]
    assert measured == pytest.approx(planned["memory_bytes"], rel=0.08), planned
    joules = [record["energy_joules"] for record in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert joules == sorted(joules) and joules[-1] > 0
