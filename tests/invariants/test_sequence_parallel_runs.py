"""Runs in which two ranks share each sequence have the losses of one rank with all of it (L2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.ledgers import assert_proven
from harness.programs import train_with_options
from harness.ranks import run_ranks
from harness.reference import References

SHARED = "train.sequence_parallel_size=2"


def run(world: int, words: list[str], **options: Any) -> dict[str, Any]:
    code = options.pop("code", 0)
    results = run_ranks(train_with_options, world, words, options)
    assert {result["code"] for result in results} == {code}, [
        result["message"] for result in results
    ]
    return dict(results[0])


def assert_same(found: dict[str, Any], wanted: dict[str, Any], *, norms: bool = True) -> None:
    assert found["losses"] == pytest.approx(wanted["losses"], rel=2e-5)
    assert found["eval"] == pytest.approx(wanted["eval"], rel=2e-5)
    if norms:
        assert found["grad_norms"] == pytest.approx(wanted["grad_norms"], rel=1e-3)


@pytest.fixture(scope="module")
def whole(references: References) -> dict[str, Any]:
    return references(1)


# zero2 is tested below.
@pytest.mark.parametrize(
    "recipe",
    [
        None,
        pytest.param("zero0", marks=pytest.mark.deep),
        "zero3",
        pytest.param("zero2_offload", marks=pytest.mark.deep),
    ],
)
def test_two_ranks_that_share_sequences_equal_one(
    recipe: str | None, words: Any, whole: Any, tmp_path: Path
) -> None:
    found = run(2, words(tmp_path / "run", SHARED), deepspeed=recipe)
    assert "sequences over 2 ranks (Ulysses)" in found["output"]
    assert "1 group of 2 ranks" in found["output"]
    # DeepSpeed reports no norm at stage 0 in fp32.
    assert_same(found, whole, norms=recipe != "zero0")
    assert_proven(tmp_path / "run", 8)


KEYS_REPEATED = [
    "model.architecture=qwen3",
    "model.num_key_value_heads=1",
    "train.document_mask=on",
]
LEAN = [
    "train.gradient_checkpointing=true",
    "train.mlp_kernel=tiled",
    "train.dataloader_num_workers=1",
]


@pytest.fixture(scope="module")
def documents(
    words: Any, whole: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return run(1, words(tmp_path_factory.mktemp("documents") / "run", *KEYS_REPEATED))


@pytest.mark.parametrize(
    ("world", "recipe"), [pytest.param(2, "zero3", marks=pytest.mark.deep), (4, "zero2")]
)
def test_shared_sequences_work_with_documents_repeated_keys_and_recomputation(
    world: int, recipe: str, words: Any, documents: dict[str, Any], tmp_path: Path
) -> None:
    """Qwen3 with one key head. Four ranks form two groups that read different sequences."""
    micro = f"train.per_device_train_batch_size={4 if world == 2 else 2}"
    found = run(
        world, words(tmp_path / "run", SHARED, micro, *KEYS_REPEATED, *LEAN), deepspeed=recipe
    )
    assert_same(found, documents)
    assert_proven(tmp_path / "run", 8)


def test_shared_sequences_in_bf16_without_deepspeed(
    words: Any, documents: dict[str, Any], tmp_path: Path
) -> None:
    """Under autocast, Qwen3's queries and keys are float32 and its values are not."""
    found = run(2, words(tmp_path / "run", SHARED, "train.precision=bf16", *KEYS_REPEATED))
    assert found["losses"] == pytest.approx(documents["losses"], rel=5e-3)
    assert found["losses"] != pytest.approx(documents["losses"], rel=1e-6), "it ran in float32"


def test_a_run_may_share_its_sequences_after_a_resume(
    words: Any, whole: dict[str, Any], tmp_path: Path
) -> None:
    stopped = run(2, words(tmp_path / "run"), deepspeed="zero2", signal_at=4, code=75)
    assert stopped["exit"]["step"] == 5
    found = run(2, words(tmp_path / "run", SHARED), deepspeed="zero2", resume="auto")
    assert_same(found, whole)
    assert_proven(tmp_path / "run", 8, segments=2)


@pytest.mark.deep
def test_a_checkpoint_passes_between_shared_and_whole_sequences(
    words: Any, whole: Any, tmp_path: Path
) -> None:
    """Two ranks that share sequences, one rank with whole ones, and two again: one run."""
    folder = tmp_path / "run"
    run(2, words(folder, SHARED), deepspeed="zero3", signal_at=1, code=75)
    run(1, words(folder), resume="auto", signal_at=3, code=75)
    found = run(2, words(folder, SHARED), deepspeed="zero1", resume="auto")
    assert_same(found, whole, norms=False)
