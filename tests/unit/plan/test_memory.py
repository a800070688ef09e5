"""Memory by part: the published formulas with numbers, and the inputs of each part."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.config.load import load
from wikillm.config.schema_types import Checkpointing
from wikillm.plan.choose import CHECKPOINTING, Machine, choose
from wikillm.plan.communication import communication_per_step
from wikillm.plan.gpus import find_gpu
from wikillm.plan.memory import (
    activation_bytes_per_token,
    host_bytes_per_rank,
    kept_by_checkpointing,
    loss_bytes,
    memory_per_rank,
)
from wikillm.plan.strategy import Strategy, with_recipe
from wikillm.plan.time import step_time
from wikillm.plan.workload import Workload, describe_workload

PSI_7B = 7_615_616_512
H100 = find_gpu("h100")
NODE = Machine(H100, 1, 8, 2**40)


def workload(preset: str = "7b", length: int = 4096) -> Workload:
    made = describe_workload(load(f"pretrain-{preset}"), ranks=8)
    return replace(made, sequence_length=length)


W7B = workload()


def strategy(recipe: str, ranks: int = 8, **changes: object) -> Strategy:
    plain = Strategy("ddp", 0, ranks, min(8, ranks), 1, 4, "bf16")
    return replace(with_recipe(plain, recipe, 3584), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("recipe", "weights", "gradients", "optimizer"),
    [
        ("zero0", 2.0, 4.0, 12.0),
        ("zero1", 2.0, 4.0, 12 / 8),
        ("zero2", 2.0, 6 / 8, 12 / 8),
        ("zero3", 2 / 8, 4 / 8, 12 / 8),
        ("zero2_offload", 2.0, 2 / 8, 0.0),
        ("zero3_offload", 0.0, 0.0, 0.0),
    ],
)
def test_states_of_7b_on_eight_ranks(
    recipe: str, weights: float, gradients: float, optimizer: float
) -> None:
    memory = memory_per_rank(W7B, strategy(recipe))
    assert W7B.parameters == PSI_7B
    assert memory.weights == pytest.approx(weights * PSI_7B, abs=1)
    assert memory.gradients == pytest.approx(gradients * PSI_7B, abs=1)
    assert memory.optimizer == pytest.approx(optimizer * PSI_7B, abs=1)


def test_offload_moves_the_states_to_the_host() -> None:
    assert host_bytes_per_rank(W7B, strategy("zero3")) == 0
    assert host_bytes_per_rank(W7B, strategy("zero2_offload")) == pytest.approx(
        16 * PSI_7B / 8, abs=16
    )
    assert host_bytes_per_rank(W7B, strategy("zero3_offload")) == pytest.approx(
        18 * PSI_7B / 8, abs=18
    )


def test_stock_logits_of_the_tutorials_batch_are_35_gb() -> None:
    """32 sequences of 512 tokens at V=151,936: 2.49e9 logits, 14 bytes each at the peak."""
    memory = memory_per_rank(workload("350m", 512), strategy("zero0", 1, micro=32, loss="stock"))
    assert memory.loss == 32 * 512 * 151_936 * 14 == 34_850_471_936


def test_the_chunked_loss_holds_one_chunk_and_the_heads_gradient() -> None:
    """At 32 x 512 tokens: 4 chunks of 4,096 rows, 8 bytes a logit; the gradient is 1,024 wide."""
    made = workload("350m", 512)
    chunk, head = 4096 * 151_936 * 8, 151_936 * made.model.hidden_size * 4
    assert (
        loss_bytes(made, strategy("zero0", 1, micro=32))
        == chunk + head + 32 * 512 * made.model.hidden_size * 2
    )


@given(
    recipe=st.sampled_from(["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]),
    micro=st.integers(1, 32),
    length=st.integers(128, 8192),
    power=st.integers(1, 8),
    checkpointing=st.sampled_from(CHECKPOINTING),
)
def test_more_tokens_never_take_less_and_more_ranks_never_more(
    recipe: str, micro: int, length: int, power: int, checkpointing: Checkpointing
) -> None:
    # The stock loss, since chunks are made equal.
    base = strategy(recipe, 2**power, micro=micro, checkpointing=checkpointing, loss="stock")

    def total(length: int = length, **changes: object) -> int:
        made = replace(base, **changes)  # type: ignore[arg-type]
        return memory_per_rank(replace(W7B, sequence_length=length), made).total

    here = total()
    assert total(length=length + 64) > here
    assert total(micro=micro + 1) > here
    assert total(ranks=2 ** (power + 1)) <= here
    more = CHECKPOINTING[min(CHECKPOINTING.index(checkpointing) + 1, 3)]
    assert total(checkpointing=more) < here or checkpointing == "full"


def test_the_bytes_that_a_checkpointed_layer_keeps() -> None:
    """7B in bf16: h 3,584; 28 heads and 4 key heads of 128; f 18,944."""
    base = strategy("zero2")
    kinds = {kind: replace(base, checkpointing=kind) for kind in CHECKPOINTING[1:]}
    assert get_args(Checkpointing) == CHECKPOINTING
    assert kept_by_checkpointing(W7B, kinds["full"]) == 2 * 3584
    assert kept_by_checkpointing(W7B, kinds["full_but_attention"]) == 2 * (3584 + 3584) + 4 * 28
    selective = 2 * (3584 + 3584 + 3584 + 2 * 512 + 3584 + 2 * 18944) + 4 * 28
    assert kept_by_checkpointing(W7B, kinds["selective"]) == selective
    assert (
        kept_by_checkpointing(W7B, replace(kinds["selective"], tiled_mlp=True))
        == selective - 4 * 18944
    )
    whole = activation_bytes_per_token(W7B, base)
    assert activation_bytes_per_token(W7B, kinds["selective"]) == 28 * selective + whole // 28


def test_a_mask_of_documents_is_counted_once_and_repeats_keys_and_values() -> None:
    """7B: 28 query and 4 key heads of 128; two sequences of 4,096 tokens."""
    base = strategy("zero2", micro=2)
    more = (
        memory_per_rank(W7B, replace(base, masked=True)).activations
        - memory_per_rank(W7B, base).activations
    )
    assert more == 2 * 4096**2 * 2 + 2 * 4096 * 28 * 4 * (28 - 4) * 128
    words = ["train.document_mask=on", "train.sequence_length=4096"]
    kernels = {"sdpa": True, "flash_attention_2": False}
    for kernel, is_masked in kernels.items():
        resolved = load("pretrain-7b", [*words, f"model.attn_implementation={kernel}"])
        made = describe_workload(resolved, ranks=8)
        assert choose(resolved, made, NODE)[0].strategy.masked is is_masked


def test_the_compute_that_recomputation_adds() -> None:
    """Kept, attention's share of the forward pass is not repeated."""
    long = replace(W7B, sequence_length=131_072)
    share = 12 * 28 * 28 * 128 * 131_072 / long.flops_per_token

    def compute(kind: Checkpointing) -> float:
        made = strategy("zero2", checkpointing=kind)
        return step_time(long, made, communication_per_step(long, made), H100, mfu=0.4).compute

    costs = [compute(kind) / compute("none") for kind in CHECKPOINTING]
    assert 0.7 < share < 0.8
    assert costs == pytest.approx([1, 1.05, 4 / 3 - share / 3, 4 / 3])


@pytest.mark.parametrize(
    ("recipe", "elements"),
    [("zero0", 2), ("zero1", 2), ("zero2", 5), ("zero3", 12), ("zero2_offload", 5)],
)
def test_traffic_of_four_micro_steps(recipe: str, elements: int) -> None:
    sent = communication_per_step(W7B, strategy(recipe))
    assert sent.inside_node == pytest.approx(2 * elements * PSI_7B * 7 / 8, rel=1e-9)
    assert sent.between_nodes == 0
    assert (sent.host > 0) == ("offload" in recipe)


@pytest.mark.parametrize(
    ("recipe", "over"), [("zero0", 1), ("zero1", 0), ("zero2", 0), ("zero3", 8)]
)
def test_muon_lacks_one_moment_of_the_hidden_matrices(recipe: str, over: int) -> None:
    """Not at stages 1 and 2, where DeepSpeed stages a copy of the momentum."""
    adamw, muon = (memory_per_rank(W7B, strategy(recipe, muon=wanted)) for wanted in (False, True))
    assert 0.8 * PSI_7B < W7B.hidden_matrices < 0.9 * PSI_7B
    assert adamw.optimizer - muon.optimizer == pytest.approx(
        4 * W7B.hidden_matrices / over if over else 0, abs=8
    )
    assert replace(adamw, optimizer=0, fragmentation=0) == replace(
        muon, optimizer=0, fragmentation=0
    )


def test_the_moving_average_is_sharded_over_the_ranks() -> None:
    plain, ema = (memory_per_rank(W7B, strategy("zero2", ema=wanted)) for wanted in (False, True))
    assert ema.optimizer - plain.optimizer == pytest.approx(4 * PSI_7B / 8, abs=8)


@pytest.mark.parametrize(
    ("words", "recipes"),
    [
        (
            ["train.optimizer=muon", "train.max_grad_norm=0", "train.ema_decay=0.999"],
            {"zero0", "zero1", "zero2", "zero3"},
        ),
        (
            ["train.compile=layers", "train.optimizer=adamw", "train.max_grad_norm=1"],
            {"zero0", "zero1", "zero2", "zero2_offload"},
        ),
    ],
)
def test_recipes_that_the_run_would_refuse_are_not_planned(
    words: list[str], recipes: set[str]
) -> None:
    resolved = load("pretrain-0.5b", words)
    candidates = choose(resolved, describe_workload(resolved, ranks=8), NODE)
    assert {candidate.strategy.recipe for candidate in candidates} == recipes
