"""Ranks that share sequences: batch, memory, traffic, time, refusals, proposals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wikillm.config.load import load
from wikillm.config.resolved import Resolved
from wikillm.config.schema_types import Checkpointing
from wikillm.core.errors import ConfigError
from wikillm.plan.batch import BatchSplit, split_batch
from wikillm.plan.choose import Machine, choose
from wikillm.plan.communication import communication_per_step
from wikillm.plan.gpus import find_gpu
from wikillm.plan.memory import memory_per_rank
from wikillm.plan.strategy import Strategy, with_recipe
from wikillm.plan.workload import describe_workload

LONG = ("train.sequence_length=32768", "train.sequence_parallel_size=4")
H100 = find_gpu("h100")


W8B = describe_workload(load("pretrain-8b", LONG[:1]), ranks=8)


def split(resolved: Resolved, ranks: int) -> BatchSplit:
    return split_batch(resolved.config.train, resolved.origins, ranks)


def strategy(shared: int, **changes: object) -> Strategy:
    plain = Strategy("ddp", 0, 8, 8, 1, 4, "bf16", sequence_parallel=shared)
    return replace(with_recipe(plain, "zero2", 4096), **changes)  # type: ignore[arg-type]


def test_ranks_that_do_not_fill_their_groups_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="sequence_parallel_size=4 does not divide the 6 ranks"
    ) as refused:
        split(load("pretrain-8b", LONG), 6)
    assert "train.sequence_parallel_size=3" in (refused.value.fix or "")
    assert "a multiple of 4 ranks" in (refused.value.fix or "")


def test_activations_are_shared_and_the_exchange_is_counted() -> None:
    """36 layers of 32 query and 8 key heads of 128. Four ranks: one more output; 16: keys twice."""
    one, four, sixteen = (memory_per_rank(W8B, strategy(n)).activations * n for n in (1, 4, 16))
    tokens, layers = 32768, 36
    assert four - one == pytest.approx(tokens * layers * 2 * 32 * 128, rel=1e-6)
    assert sixteen - four == pytest.approx(tokens * layers * 4 * 8 * 128, rel=1e-6)


@pytest.mark.parametrize(("checkpointing", "passes"), [("none", 2), ("selective", 3), ("full", 3)])
def test_traffic_of_shared_sequences(checkpointing: Checkpointing, passes: int) -> None:
    made = strategy(4, checkpointing=checkpointing)
    heads = 2 * 32 + 2 * 8
    sent = passes * 2 * 4 * (32768 // 4) * 36 * heads * 128 * 3 / 4
    assert communication_per_step(W8B, made).sequences == pytest.approx(sent, rel=1e-9)
    assert communication_per_step(W8B, replace(made, sequence_parallel=1)).sequences == 0


def test_shared_sequences_are_proposed_if_only_they_fit() -> None:
    machine = Machine(H100, 1, 8, 2**40)
    words = ["train.sequence_length=131072"]

    def choose_with(more: list[str]) -> Strategy:
        resolved = load("pretrain-14b", ["model.max_position_embeddings=131072", *words, *more])
        return choose(resolved, describe_workload(resolved, ranks=8), machine)[0].strategy

    with pytest.raises(ConfigError, match="14b does not fit") as refused:
        choose_with([])
    proposal = (refused.value.fix or "").splitlines()[0].split()
    assert "train.sequence_parallel_size=2" in proposal
    found = choose_with([word for word in proposal if "=" in word])
    assert found.sequence_parallel == 2


@pytest.mark.parametrize(
    ("run", "shared", "way"),
    [("long-1.7b-32k", 2, ("zero1", "none")), ("long-7b-128k", 4, ("zero3", "selective"))],
)
def test_the_long_presets_fit_on_a_node_of_h100(
    run: str, shared: int, way: tuple[str, str]
) -> None:
    resolved = load(run)
    machine = Machine(H100, 1, 8, 2**40)
    best = choose(resolved, describe_workload(resolved, ranks=8), machine)[0]
    assert best.fits and best.strategy.sequence_parallel == shared
    assert (best.strategy.recipe, best.strategy.checkpointing) == way
