"""A batch that grows from 2 to 8 sequences gives the same run with any ranks, stop or resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.ledgers import assert_proven
from harness.observed_runs import train_noting_reductions
from harness.programs import tensor_digest
from harness.ranks import run_ranks
from harness.reference import References
from harness.tiny_run import run

from wikillm.checkpoints.manifest import read_state
from wikillm.observe import names
from wikillm.observe.sinks import read_metrics

# 2 sequences in 4 steps, 4 in 2 steps, then 8. The 8 steps read 8 + 8 + 16 sequences of 32 tokens.
RAMP = ("train.batch_ramp_from=64", "train.batch_ramp_tokens=512", "train.logging_steps=1")
BATCHES = [2, 2, 2, 2, 4, 4, 8, 8]


@pytest.fixture(scope="module")
def alone(words: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One rank without DeepSpeed, one sequence per micro-step: 2, 4 and 8 micro-steps."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    result = run(1, words(folder, *RAMP, "train.per_device_train_batch_size=1"), deepspeed=None)
    assert result["code"] == 0, result["message"]
    assert "from 64 tokens, full after 6 steps (2 x 4, 4 x 2 steps)" in result["output"]
    tokens = [
        record[names.TOKENS]
        for record in read_metrics(folder / "metrics.jsonl")
        if names.LOSS in record
    ]
    assert tokens == [32 * sum(BATCHES[: step + 1]) for step in range(8)]
    assert read_state(folder / "checkpoints" / "checkpoint-8")["consumed_samples"] == 32
    assert_proven(folder, 8)
    return result


@pytest.mark.parametrize(
    ("world", "micro", "recipe", "sharing"),
    [
        (2, 1, None, 1),
        pytest.param(1, 2, "zero1", 1, marks=pytest.mark.deep),
        pytest.param(2, 1, "zero2", 1, marks=pytest.mark.deep),
        (2, 1, "zero3", 1),
        (2, 1, "zero2", 2),
    ],
)
def test_any_world_micro_batch_and_stage_gives_the_same_run(
    world: int, micro: int, recipe: str | None, sharing: int, alone: Any, references: References
) -> None:
    """`sharing`: ranks per sequence. With it, DeepSpeed counts the batch differently."""
    more = (f"train.per_device_train_batch_size={micro}",)
    if sharing > 1:
        more += (f"train.sequence_parallel_size={sharing}",)
    result = references(world, *RAMP, *more, deepspeed=recipe)
    assert result["losses"] == pytest.approx(alone["losses"], rel=2e-5)
    assert result["grad_norms"] == pytest.approx(alone["grad_norms"], rel=1e-3)
    assert result["eval"] == pytest.approx(alone["eval"], rel=2e-5)
    assert_proven(result["folder"], 8)


def test_plain_data_parallel_reduces_once_a_step(words: Any, tmp_path: Path) -> None:
    more = "train.per_device_train_batch_size=1"
    for result in run_ranks(
        train_noting_reductions, 2, words(tmp_path / "run", *RAMP, more), {"deepspeed": None}
    ):
        steps = [[False] * (sequences // 2 - 1) + [True] for sequences in BATCHES]
        assert result["reductions"] == [reduces for step in steps for reduces in step]


def test_stopped_within_the_ramp_and_resumed_is_bit_identical(
    words: Any, references: References, tmp_path: Path
) -> None:
    """Stop after three of the first stage's four steps. The step after next doubles the batch."""
    more = (*RAMP, "train.per_device_train_batch_size=1")
    whole = references(2, *more, deepspeed="zero2")
    stopped = run(
        2, words(tmp_path / "parts", *more), deepspeed="zero2", signal_at=2, signal_rank=1
    )
    assert stopped["code"] == 75 and max(stopped["losses"]) == 3, stopped["message"]
    other = words(tmp_path / "parts", "train.per_device_train_batch_size=1", *RAMP[2:])
    refused = run(2, other, deepspeed="zero2", resume="auto")
    assert (
        refused["code"] == 6
        and "batch_ramp: 2 x 4, 4 x 2 steps then, off now" in refused["message"]
    )
    resumed = run(2, words(tmp_path / "parts", *more), deepspeed="zero2", resume="auto")
    assert resumed["code"] == 0, resumed["message"]
    assert (resumed["losses"], resumed["grad_norms"]) == (whole["losses"], whole["grad_norms"])
    assert_proven(tmp_path / "parts", 8, segments=2)
    digests = {
        tensor_digest(folder / "checkpoints" / "checkpoint-8")
        for folder in (whole["folder"], tmp_path / "parts")
    }
    assert len(digests) == 1, "the final weights differ"


def test_a_ramp_under_offload_is_refused(words: Any, tmp_path: Path) -> None:
    result = run(
        1,
        words(tmp_path / "run", *RAMP, "train.per_device_train_batch_size=1"),
        deepspeed="zero2_offload",
    )
    assert (
        result["code"] == 2
        and "does not work with DeepSpeed's optimizer offload" in result["message"]
    )
