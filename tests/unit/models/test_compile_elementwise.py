"""Norms, rotation and SwiGLU compiled: the same numbers, three graphs, less memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness.held import held_bytes
from harness.three_layers import SHAPE, build, compiled_graphs
from transformers import MistralConfig, MistralForCausalLM
from transformers.models.qwen2 import modeling_qwen2

from wikillm.core.errors import WikiLLMError
from wikillm.models import tiled_mlp
from wikillm.models.checkpointing import checkpoint_layers
from wikillm.models.compile_elementwise import compile_elementwise, restore_rotation
from wikillm.models.patching import remove_patches
from wikillm.models.shape import ARCHITECTURES
from wikillm.models.tiled_mlp import tile_mlp

ROTATION = modeling_qwen2.apply_rotary_pos_emb


@pytest.fixture(autouse=True)
def _as_before(forget_graphs: None) -> Iterator[None]:
    yield
    for architecture in ARCHITECTURES:  # the rotation is the whole process's
        restore_rotation(build(architecture))
    assert modeling_qwen2.apply_rotary_pos_emb is ROTATION


def outcome(model: Any, precision: str = "float32") -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    ids = torch.arange(48).view(2, -1) % 97
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss.detach()), [
        parameter.grad.clone().float() for parameter in model.parameters()
    ]


@pytest.mark.parametrize(
    ("architecture", "kernels", "backend"),
    [
        ("qwen3", (), "aot_eager"),
        pytest.param("qwen3", (), "inductor", marks=pytest.mark.deep),
        ("llama", ("tiled",), "aot_eager"),
        ("qwen2", ("selective",), "aot_eager"),
        pytest.param("llama", (), "inductor", marks=pytest.mark.deep),
        pytest.param("qwen2", (), "inductor", marks=pytest.mark.deep),
        pytest.param("qwen3", ("tiled", "selective"), "aot_eager", marks=pytest.mark.deep),
    ],
)
def test_compiled_functions_give_the_same_losses_and_gradients(
    architecture: str, kernels: tuple[str, ...], backend: str
) -> None:
    stock = build(architecture)
    wanted = outcome(stock)  # before: the rotation is compiled for both from then on
    ours = copy.deepcopy(stock)
    if "tiled" in kernels:
        tile_mlp(ours, rows=48, device_type="cpu")
    if "selective" in kernels:
        checkpoint_layers(ours, "selective")
    said = compile_elementwise(ours, backend=backend)
    assert ("SwiGLU" in said) is not ("tiled" in kernels)
    found = outcome(ours)
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-4)
    # Qwen3's norms of queries and keys have shapes of their own.
    graphs = 2 + ("SwiGLU" in said) + (2 if architecture == "qwen3" else 0)
    assert compiled_graphs() == graphs
    outcome(ours)
    assert compiled_graphs() == graphs, "a second step compiles nothing"


@pytest.mark.parametrize(
    "precision", ["bfloat16", pytest.param("autocast", marks=pytest.mark.deep)]
)
def test_16_bit_gradients_are_as_near_to_float32_as_the_stock_models(precision: str) -> None:
    truth = outcome(build())[1]
    found = []
    for is_compiled in (False, True):
        model = build().to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        if is_compiled:
            compile_elementwise(model)
        grads = outcome(model, precision)[1]
        off = sum(float((g - t).square().sum()) for g, t in zip(grads, truth, strict=True))
        found.append((off / sum(float(t.square().sum()) for t in truth)) ** 0.5)
    assert 0 < found[1] < 1.2 * found[0] < 0.1


def test_less_is_kept_for_the_backward_pass() -> None:
    stock, ours = build(), build()
    compile_elementwise(ours)
    ids = torch.arange(48).view(2, -1) % 97
    wanted, found = (
        held_bytes(stock, input_ids=ids),
        held_bytes(ours, input_ids=ids),
    )  # in this order: the rotation is compiled for both from then on
    # Per token and layer a norm keeps one vector less, twice, and the SwiGLU silu(gate); the last
    # norm one.
    assert wanted - found >= 4 * 48 * (3 * (2 * 32 + 80) + 32)


def test_evaluation_and_generation_run_the_stock_code() -> None:
    stock, ours = build().eval(), build().eval()
    ids = torch.arange(1, 13).view(2, 6)
    wanted = stock(input_ids=ids).logits
    compile_elementwise(ours)
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, wanted)
        assert torch.equal(ours.train()(input_ids=ids).logits, wanted)
        text = ours.eval().generate(ids, max_new_tokens=4, do_sample=False, use_cache=True)
    assert torch.equal(text, stock.generate(ids, max_new_tokens=4, do_sample=False, use_cache=True))
    assert compiled_graphs() == 0


def test_the_patch_is_reversible_and_refused_for_an_unknown_model() -> None:
    model = build()
    compile_elementwise(model)
    with pytest.raises(WikiLLMError, match="train.compile=elementwise does not know"):
        compile_elementwise(model)
    restore_rotation(model)
    remove_patches(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert modeling_qwen2.apply_rotary_pos_emb is ROTATION
    tile_mlp(model, rows=48, device_type="cpu")
    compile_elementwise(model)
    assert model.model.layers[0].mlp.forward.__func__.__module__ == tiled_mlp.__name__, (
        "a tiled MLP keeps its own SwiGLU"
    )
    with pytest.raises(WikiLLMError, match="MistralForCausalLM"):
        compile_elementwise(MistralForCausalLM(MistralConfig(**SHAPE)))
