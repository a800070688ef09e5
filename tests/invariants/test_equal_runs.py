"""Runs that must be equal are compared over their whole loss series.

L1: bit-identical (same world size, same software). L2: equal up to the order of floating-point sums
(another world size, micro-batch or ZeRO stage). These fp32 runs of eight steps allow 2e-5, where L2
guarantees 1e-3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.observed_runs import train_noting_reductions
from harness.programs import tensor_digest, train_without_launcher
from harness.ranks import run_ranks
from harness.reference import References
from harness.tiny_run import run

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.checkpoints.manifest import read_state, verify
from wikillm.config.load import load
from wikillm.core.files import files_below
from wikillm.plan.checkpoint import checkpoint_bytes
from wikillm.plan.outcome import find_outcomes

L2 = 2e-5


@pytest.fixture(scope="module")
def baseline(references: References) -> dict[str, Any]:
    """One rank, ZeRO-1, with the eight sequences in two micro-batches."""
    result = references(1, deepspeed="zero1")
    assert result["losses"][8] < result["losses"][1] - 0.3, f"it should learn: {result['losses']}"
    return result


@pytest.mark.parametrize(
    "recipe", [None, "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
)
def test_two_ranks_of_any_stage_equal_one_rank(
    recipe: str | None, words: Any, baseline: Any, references: References, tmp_path: Path
) -> None:
    result = references(2, deepspeed=recipe)
    assert result["losses"] == pytest.approx(baseline["losses"], rel=L2)
    if recipe != "zero0":  # DeepSpeed reports no gradient norm at stage 0 in fp32
        assert result["grad_norms"] == pytest.approx(baseline["grad_norms"], rel=1e-3)
    assert result["eval"] == pytest.approx(baseline["eval"], rel=L2)
    predicted = checkpoint_bytes(load(None, words(tmp_path)).config.model, 640, ranks=2)
    newest = list_checkpoints(result["folder"] / "checkpoints")[0]
    assert sum(path.stat().st_size for path in files_below(newest)) == pytest.approx(
        predicted, rel=0.04
    )


def test_plain_data_parallel_reduces_once_a_step(words: Any, tmp_path: Path) -> None:
    """Eight steps of eight sequences: four micro-steps on each of two ranks."""
    more = "train.per_device_train_batch_size=1"
    for result in run_ranks(
        train_noting_reductions, 2, words(tmp_path / "run", more), {"deepspeed": None}
    ):
        assert result["reductions"] == [False, False, False, True] * 8


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_any_micro_batch_gives_the_same_run(
    micro_batch: int, words: Any, baseline: Any, tmp_path: Path
) -> None:
    more = f"train.per_device_train_batch_size={micro_batch}"
    found = run(1, words(tmp_path / "run", more), deepspeed="zero2")
    assert found["losses"] == pytest.approx(baseline["losses"], rel=L2)
    (outcome,), broken = find_outcomes([tmp_path])  # written by every run that reaches its horizon
    assert not broken and outcome["ranks"] == 1 and outcome["engine"] == "ZeRO-2"
    memory = outcome["memory_bytes"]
    assert memory["predicted"] > 0 and memory["measured"] > 0
    assert outcome["tokens_per_second"]["measured"] > 0


@pytest.mark.parametrize("recipe", [None, "zero2", "zero3"])
def test_stopped_and_resumed_is_bit_identical(
    recipe: str | None, words: Any, references: References, tmp_path: Path
) -> None:
    """SIGTERM to rank 1 stops all ranks at one step with 75. The resumed run equals a whole one."""
    whole = references(2, deepspeed=recipe)
    stopped = run(2, words(tmp_path / "parts"), deepspeed=recipe, signal_at=2, signal_rank=1)
    assert stopped["code"] == 75 and stopped["exit"]["code"] == 75, stopped["message"]
    assert max(stopped["losses"]) == 3
    resumed = run(2, words(tmp_path / "parts"), deepspeed=recipe, resume="auto")
    assert resumed["code"] == 0, resumed["message"]
    assert resumed["losses"] == whole["losses"]
    assert resumed["grad_norms"] == whole["grad_norms"]
    assert resumed["eval"] == whole["eval"]
    digests = {
        tensor_digest(folder / "checkpoints" / "checkpoint-8")
        for folder in (whole["folder"], tmp_path / "parts")
    }
    assert len(digests) == 1, "the final weights differ"


def test_stopped_by_the_time_limit_and_resumed_is_bit_identical(
    words: Any, references: References, tmp_path: Path
) -> None:
    """With the limit exceeded, each start saves after one step and exits 75. The losses match."""
    whole = references(2, deepspeed="zero2")
    for step in (1, 2):
        stopped = run(
            2, words(tmp_path / "parts", "train.max_hours=1e-6"), deepspeed="zero2", resume="auto"
        )
        assert stopped["code"] == 75 and "train.max_hours" in stopped["message"], stopped["message"]
        assert (stopped["exit"]["code"], stopped["exit"]["step"]) == (75, step)
        verify(list_checkpoints(tmp_path / "parts" / "checkpoints")[-1])
    resumed = run(
        2, words(tmp_path / "parts", "train.max_hours=10"), deepspeed="zero2", resume="auto"
    )
    assert resumed["code"] == 0, resumed["message"]
    assert resumed["losses"] == whole["losses"]
    assert resumed["grad_norms"] == whole["grad_norms"]


def test_checkpoints_keep_the_duration_of_earlier_starts_saves(words: Any, tmp_path: Path) -> None:
    """The first save of a start records it too, though none of this start has ended by then."""
    checkpoints = tmp_path / "run" / "checkpoints"
    assert run(1, words(tmp_path / "run", "train.save_steps=2"), signal_at=4)["code"] == 75
    assert run(1, words(tmp_path / "run", "train.save_steps=8"), resume="auto")["code"] == 0
    seconds = {
        path.name: read_state(path)["save_seconds"] for path in list_checkpoints(checkpoints)
    }
    assert seconds["checkpoint-8"] == seconds["checkpoint-5"] > 0


def test_no_launcher_and_no_deepspeed_is_the_same_run(
    words: Any, baseline: Any, tmp_path: Path
) -> None:
    (result,) = run_ranks(train_without_launcher, 1, words(tmp_path / "run"))
    assert result["code"] == 0, result["message"]
    assert result["losses"] == pytest.approx(baseline["losses"], rel=L2)


def test_samples_do_not_change_the_run(words: Any, baseline: Any, tmp_path: Path) -> None:
    more = ["observe.sample_prompts=[the, '']", "observe.sample_steps=2", "observe.sample_tokens=5"]
    result = run(1, words(tmp_path / "run", *more), deepspeed="zero1")
    assert result["losses"] == baseline["losses"]
    assert result["output"].count("sample ") >= 6


@pytest.mark.parametrize("recipe", [None, "zero2"])
def test_nan_ends_the_run_on_all_ranks_and_enters_no_checkpoint(
    recipe: str | None, words: Any, tmp_path: Path
) -> None:
    """The weights of rank 0 become NaN after step 5. The last checkpoint is that of step 4."""
    result = run(2, words(tmp_path / "run"), deepspeed=recipe, poison_at=5)
    assert result["code"] == 5 and result["exit"]["code"] == 5
    assert "NaN or infinite at step 6" in result["message"]
    assert all(loss is not None for loss in result["losses"].values())
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in checkpoints] == ["checkpoint-4"]
    verify(checkpoints[0])


def test_another_configuration_cannot_resume_in_silence(words: Any, tmp_path: Path) -> None:
    assert run(1, words(tmp_path / "run"), deepspeed="zero1")["code"] == 0
    records = (
        "config.resolved.yaml",
        "plan.json",
        "data.json",
        "ds_config.resolved.json",
        "tokenizer/tokenizer.json",
    )
    before = [(tmp_path / "run" / name).read_bytes() for name in records]
    store = ["data.tokenizer=train:500", f"data.store={tmp_path / 'other'}"]
    changed = words(tmp_path / "run", "train.sequence_length=16", "run.seed=7", *store)
    refused = run(1, changed, deepspeed="zero1", resume="auto")
    assert refused["code"] == 6
    assert [(tmp_path / "run" / name).read_bytes() for name in records] == before, (
        "a refused start records nothing"
    )
    assert (
        "sequence_length: 32 then, 16 now" in refused["message"]
        and "seed: 42 then, 7 now" in refused["message"]
    )
    again = run(1, words(tmp_path / "run"), deepspeed="zero1")
    assert again["code"] == 2 and "--resume auto" in again["message"]
