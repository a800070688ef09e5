"""Checkpointed layers: the same gradients, what is kept and recomputed, what is refused."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, get_args

import pytest
import torch
from harness.held import held_bytes
from harness.three_layers import SHAPE, build, compiled_graphs
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from wikillm.config.schema import ModelSection
from wikillm.config.schema_types import Checkpointing
from wikillm.core.errors import WikiLLMError
from wikillm.models.checkpointing import checkpoint_layers
from wikillm.models.compile import compile_layers
from wikillm.models.patching import remove_patches
from wikillm.models.tiled_mlp import tile_mlp
from wikillm.plan.memory import kept_by_checkpointing
from wikillm.plan.strategy import Strategy
from wikillm.plan.workload import Workload

pytestmark = pytest.mark.usefixtures("forget_graphs")
KINDS: list[Checkpointing] = [kind for kind in get_args(Checkpointing) if kind != "none"]
TOKENS = 2 * 24
IDS = torch.arange(TOKENS).view(2, -1) % 97


def outcome(model: Any) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(1)  # for dropout
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return float(loss.detach()), [parameter.grad.clone() for parameter in model.parameters()]


def assert_equal_outcomes(found: Any, wanted: Any, **bounds: float) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(mine, theirs, **bounds)


def prepare(model: Any, kernels: tuple[str, ...]) -> None:
    if "tiled" in kernels:
        tile_mlp(model, rows=TOKENS, device_type="cpu")


class Calls(TorchDispatchMode):
    """Counts the operators that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.name().split(".")[0]] += 1
        return func(*args, **kwargs or {})


def count_calls(model: Any) -> tuple[int, int]:
    """Calls of matrix products and of attention in a forward and backward pass."""
    with Calls() as calls:
        model.get_decoder()(IDS).last_hidden_state.sum().backward()
    products = sum(calls.found[f"aten::{name}"] for name in ("mm", "addmm"))
    return products, sum(
        n for name, n in calls.found.items() if "dot_product" in name and "backward" not in name
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", [(), ("tiled",)])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_checkpointing_changes_no_loss_and_no_gradient(
    architecture: str, kernels: tuple[str, ...], kind: Checkpointing
) -> None:
    model = build(architecture).double()
    prepare(model, kernels)
    wanted = outcome(model)
    assert checkpoint_layers(model, kind).startswith("3 layers keep")
    assert_equal_outcomes(outcome(model), wanted, rtol=1e-12, atol=1e-14)
    remove_patches(model)
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_nothing_under_autocast(kind: Checkpointing) -> None:
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = outcome(model)
        checkpoint_layers(model, kind)
        assert_equal_outcomes(outcome(model), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_recomputation_draws_the_same_dropout(kind: Checkpointing) -> None:
    model = build(attention_dropout=0.5).double()
    wanted = outcome(model)
    checkpoint_layers(model, kind)
    assert_equal_outcomes(outcome(model), wanted, rtol=1e-12, atol=1e-14)


def test_each_kind_recomputes_only_its_operators() -> None:
    counted = {}
    for kind in ("none", *KINDS):
        model = build()
        if kind != "none":
            checkpoint_layers(model, kind)
        counted[kind] = count_calls(model)
    products, attention = counted["none"]
    forward = 6  # of a layer, without the last one: nothing that comes after it is needed
    assert attention == 3
    assert counted["selective"] == (products, attention)
    assert counted["full_but_attention"] == (products + 3 * forward, attention)
    assert counted["full"] == (products + 3 * forward, 2 * attention)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", [(), ("tiled",)])
def test_a_layer_keeps_what_the_planner_counts(
    kernels: tuple[str, ...], kind: Checkpointing
) -> None:
    held = []
    for layers in (2, 4):
        model = build(num_hidden_layers=layers)
        prepare(model, kernels)
        checkpoint_layers(model, kind)
        held.append(held_bytes(model, input_ids=IDS))
    section = ModelSection(**{key: SHAPE[key] for key in SHAPE if key in ModelSection.model_fields})
    strategy = Strategy("ddp", 0, 1, 1, 2, 1, "fp32", kind, tiled_mlp="tiled" in kernels)
    assert (held[1] - held[0]) / 2 / TOKENS == kept_by_checkpointing(
        Workload(section, 97, 24), strategy
    )


@pytest.mark.parametrize(
    ("kernels", "kind"),
    [
        ((), "selective"),
        (("tiled",), "full_but_attention"),
        *(
            pytest.param((), kind, marks=pytest.mark.deep)
            for kind in ("full_but_attention", "full")
        ),
        pytest.param(("tiled",), "full", marks=pytest.mark.deep),
    ],
)
def test_a_compiled_layer_contains_its_checkpoint(
    kernels: tuple[str, ...], kind: Checkpointing
) -> None:
    stock = build()
    ours = copy.deepcopy(stock)
    prepare(ours, kernels)
    checkpoint_layers(ours, kind)
    compile_layers(ours, {(2, 24)}, backend="aot_eager")
    assert_equal_outcomes(outcome(ours), outcome(stock), rtol=1e-4, atol=1e-5)
    assert compiled_graphs() == 1
    outcome(ours)
    assert compiled_graphs() == 1, "a second step compiles nothing"


@pytest.mark.deep
def test_compiled_layers_keep_less_and_do_no_product_twice() -> None:
    sizes, products, attention = [], [], []
    for kind in get_args(Checkpointing):
        torch._dynamo.reset()
        model = build(num_hidden_layers=4)
        if kind != "none":
            checkpoint_layers(model, kind)
        compile_layers(
            model, {(2, 24)}, backend="aot_eager_decomp_partition"
        )  # what is kept is decided there
        outcome(model)
        sizes.append(held_bytes(model, input_ids=IDS))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            model.get_decoder()(
                torch.ones(2, 24, dtype=torch.long)
            ).last_hidden_state.sum().backward()
        calls = {event.key: event.count for event in profiled.key_averages()}
        products.append(calls["aten::mm"] + calls["aten::addmm"])
        attention.append(calls["aten::_scaled_dot_product_flash_attention_for_cpu"])
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert products[1] == products[0] < products[2]
    assert attention == [4, 4, 4, 8]


def test_evaluation_and_generation_recompute_nothing() -> None:
    model = build()
    checkpoint_layers(model, "selective")
    plain = count_calls(model)
    model.eval()
    assert count_calls(model) == plain
    assert model.generate(
        torch.tensor([[1, 2]]), max_new_tokens=3, use_cache=True, do_sample=False
    ).shape == (1, 5)


def test_a_second_checkpointing_is_refused_and_a_copy_uses_its_own_weights() -> None:
    model = build()
    checkpoint_layers(model, "full")
    with pytest.raises(WikiLLMError, match="checkpointed"):
        checkpoint_layers(model, "selective")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert outcome(other)[0] == pytest.approx(
        4.574711, abs=1e-4
    )  # log 97: the copy runs its own weights
