"""A growing batch: its stages against a step-by-step count, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.config.batch_ramp import BatchRamp
from wikillm.config.load import load
from wikillm.core.errors import WikiLLMError
from wikillm.plan.batch import split_batch
from wikillm.plan.choose import Machine, choose
from wikillm.plan.gpus import find_gpu
from wikillm.plan.report import to_json
from wikillm.plan.run_plan import Plan, make_plan
from wikillm.plan.workload import describe_workload

LENGTH = 128
FULL = f"train.global_batch_tokens={64 * LENGTH}"
BASE = [
    f"train.sequence_length={LENGTH}",
    FULL,
    "train.per_device_train_batch_size=2",
    "train.warmup_steps=0",
]
RAMP = [f"train.batch_ramp_from={8 * LENGTH}", f"train.batch_ramp_tokens={100 * LENGTH}"]


def plan(*words: str, world: int = 1) -> Plan:
    return make_plan(
        load(None, [*BASE, *words]), world_size=world, tokenizer_length=151_646, train_tokens=10**6
    )


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=4),
    st.integers(1, 20),
    st.integers(0, 40),
)
def test_every_number_is_that_of_a_count_by_steps(
    stages: list[tuple[int, int]], full: int, step: int
) -> None:
    ramp = BatchRamp(full, tuple(stages))
    series = [size for steps, size in stages for _ in range(steps)] + [full] * 60
    assert ramp.steps == sum(steps for steps, _ in stages)
    assert ramp.sequences_at(step) == series[step]
    assert ramp.sequences_before(step) == sum(series[:step])
    wanted = sum(series[:step])
    assert (
        sum(series[: ramp.steps_for(wanted + 1)])
        > wanted
        >= sum(series[: ramp.steps_for(wanted + 1) - 1])
    )
    assert sum(series[: ramp.steps_for(wanted)]) == wanted


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_same_ramp_on_every_world(world: int) -> None:
    """8, 16 and 32 sequences take a third of 100 each, rounded up to 34 and then to whole steps."""
    made = plan(*RAMP, "train.max_tokens=128000", world=world)
    assert made.batch_ramp == BatchRamp(64, ((5, 8), (3, 16), (2, 32)))
    assert made.max_steps == 10 + -(-(1000 - 40 - 48 - 64) // 64)
    assert made.total_tokens == (40 + 48 + 64 + (made.max_steps - 10) * 64) * LENGTH
    assert made.notes == () and made.to_json()["batch_ramp"]["full"] == 64


def test_the_sizes_of_a_run_are_its_steps() -> None:
    ramp = BatchRamp(8, ((4, 2), (2, 4)))
    assert ramp.sizes(3) == [(3, 2)] and ramp.sizes(6) == [(4, 2), (2, 4)]
    for steps in range(1, 12):
        listed = [size for count, size in ramp.sizes(steps) for _ in range(count)]
        assert listed == [ramp.sequences_at(step) for step in range(steps)]


def test_a_run_that_ends_within_its_ramp_says_so() -> None:
    assert "ends within its batch ramp of 10 steps" in plan(*RAMP, "train.max_steps=10").notes[-1]
    assert plan(*RAMP, "train.max_steps=11").notes == ()


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (RAMP[:1], "needs train.batch_ramp_tokens as well", "set both, or neither"),
        (RAMP[1:], "needs train.batch_ramp_from as well", "set both, or neither"),
        (
            [*RAMP, "train.global_batch_tokens=null"],
            "ends at train.global_batch_tokens, which is not set",
            "train.global_batch_tokens=8192",
        ),
        (
            [f"train.batch_ramp_from={24 * LENGTH}", RAMP[1]],
            "does not double to",
            "one of: 1024, 2048, 4096",
        ),
        (
            [f"train.batch_ramp_from={64 * LENGTH}", RAMP[1]],
            "does not double to",
            "one of: 1024, 2048, 4096",
        ),
    ],
)
def test_half_a_ramp_or_one_that_misses_the_batch_is_refused(
    words: list[str], what: str, fix: str
) -> None:
    with pytest.raises(WikiLLMError) as refused:
        load(None, [*BASE, "train.max_steps=20", *words])
    assert what in str(refused.value) and fix in str(refused.value)


def test_a_first_batch_that_the_ranks_cannot_share_is_refused() -> None:
    resolved = load(None, [*BASE, *RAMP, "train.max_steps=20"])
    assert split_batch(resolved.config.train, resolved.origins, 4).ramp.stages
    with pytest.raises(WikiLLMError) as refused:
        split_batch(resolved.config.train, resolved.origins, 8)
    assert "batch_ramp_from=1024 cannot be split over 8 ranks x 2 sequences x 128 tokens" in str(
        refused.value
    )
    assert f"train.batch_ramp_from={16 * LENGTH}" in str(refused.value)
    assert "train.per_device_train_batch_size=1, which keeps the ramp" in str(refused.value)


def test_the_planner_counts_the_smaller_batches_and_leaves_offload_out() -> None:
    resolved = load(None, [*BASE[:2], *RAMP, "train.max_steps=20", "train.warmup_steps=0"])
    machine = Machine(find_gpu("H100"), 1, 4, 2**40)
    workload = describe_workload(resolved, ranks=4, train_tokens=10**6)
    assert f"batch ramp of 10 steps: {workload.ramp.describe()}" in workload.notes
    candidates = choose(resolved, workload, machine)
    assert candidates and {choice.strategy.micro for choice in candidates} <= {1, 2}, (
        "8 sequences over 4 ranks"
    )
    assert not any(choice.strategy.offload_optimizer for choice in candidates)
    assert (
        to_json(resolved.config.train, workload, machine, candidates, mfu=None, price=None)[
            "total_tokens"
        ]
        == (40 + 48 + 64 + 10 * 64) * LENGTH
    )
