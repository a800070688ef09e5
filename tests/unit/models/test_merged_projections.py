"""Decoder layers with merged projections: the same losses and gradients, fewer products, put in and taken out."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from wikillm.config.load import load
from wikillm.core.errors import WikiLLMError
from wikillm.models.checkpointing import checkpoint_layers, keep_activations
from wikillm.models.merged_projections import merge_projections, unmerge_projections
from wikillm.models.tiled_mlp import tile_mlp, untile_mlp
from wikillm.plan.gpus import find_gpu
from wikillm.plan.job import describe_job
from wikillm.plan.memory import memory_per_rank, merged_bytes
from wikillm.plan.setup import Setup

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
KINDS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
aten, ours = torch.ops.aten, torch.ops.wikillm
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, ours.merged_linear.default)
Q_K_V, GATE_UP = (74, 128), (74, 160)  # shapes of the merged outputs


def build(architecture: str, dtype: torch.dtype = torch.float64) -> Any:
    config, kind = KINDS[architecture]
    torch.manual_seed(5)
    model = kind(config(**SMALL)).to(dtype).train()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # Hugging Face starts them at 0 and 1: they must not go unnoticed
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    return model


def ids() -> torch.Tensor:
    return torch.arange(2 * 37).view(2, 37) % 97


def outcome(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=ids(), labels=ids(), use_cache=False).loss
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


class Products(TorchDispatchMode):
    """Counts the results of matrix products by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function in PRODUCTS:
            self.shapes[tuple(out.shape)] += 1
        return out


def products(model: Any) -> Counter[tuple[int, ...]]:
    with Products() as counted:
        model(input_ids=ids(), use_cache=False)
    return counted.shapes


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_losses_and_gradients_are_those_of_the_stock_layers(
    architecture: str, checkpointing: bool, dtype: torch.dtype, bound: float
) -> None:
    model = build(architecture, dtype)
    if checkpointing:
        checkpoint_layers(model, "full")
    names, (wanted, truth) = list(model.state_dict()), outcome(model)
    assert merge_projections(model) == "merged, q k v and gate up"
    found, gradients = outcome(model)
    assert found == pytest.approx(wanted, rel=bound)
    for name, grad in truth.items():
        assert float((gradients[name] - grad).norm() / grad.norm()) < 10 * bound, name
    assert list(model.state_dict()) == names
    unmerge_projections(model)
    assert outcome(model)[0] == wanted
    keep_activations(model)
    assert not any("forward" in module.__dict__ for module in model.model.layers.modules())


def test_there_are_fewer_products_in_training_and_the_stock_ones_elsewhere() -> None:
    model = build("qwen2")
    stock = products(model)
    assert not stock[Q_K_V] and not stock[GATE_UP]
    merge_projections(model)
    merged = products(model)
    assert merged[Q_K_V] == merged[GATE_UP] == 2 and merged.total() == stock.total() - 2 * (2 + 1)
    with torch.no_grad():
        assert products(model) == stock
    tokens = model.eval().generate(ids()[:1, :5], max_new_tokens=4, do_sample=False, use_cache=True)
    unmerge_projections(model)
    assert torch.equal(model.generate(ids()[:1, :5], max_new_tokens=4, do_sample=False, use_cache=True), tokens)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_with_the_tiled_mlp_only_the_attentions_are_merged(architecture: str) -> None:
    model = build(architecture)
    wanted, truth = outcome(model)
    tile_mlp(model, rows=74, device_type="cpu")
    assert merge_projections(model) == "merged, q k v (the MLP is tiled)"
    found, gradients = outcome(model)
    assert found == pytest.approx(wanted, rel=1e-12)
    for name, grad in truth.items():
        torch.testing.assert_close(gradients[name], grad, rtol=1e-8, atol=1e-12)
    unmerge_projections(model)
    assert "forward" in model.model.layers[0].mlp.__dict__, "the tiled MLP stays"
    untile_mlp(model)
    assert outcome(model)[0] == wanted


def test_twice_or_on_unknown_layers_is_refused() -> None:
    model = build("qwen2")
    merge_projections(model)
    with pytest.raises(WikiLLMError, match="merged_projections=off"):
        merge_projections(model)
    with pytest.raises(WikiLLMError, match="LlamaForCausalLM"):
        merge_projections(LlamaForCausalLM(LlamaConfig(**SMALL)))


def test_a_copy_of_a_merged_model_uses_its_own_weights() -> None:
    model = build("qwen2")
    merge_projections(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        wanted = other(input_ids=ids()).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for is_training in (True, False):  # merged, and the layers' own code
        with torch.set_grad_enabled(is_training):
            torch.testing.assert_close(other(input_ids=ids()).logits.detach(), wanted)


def test_the_plan_counts_the_copy_and_one_vector_less() -> None:
    words = ["train.sequence_length=4096", "train.global_batch_tokens=4194304", "train.max_steps=10"]
    job = describe_job(load("pretrain-7b", words), ranks=8, gpu=find_gpu("H100"), train_tokens=10**10)
    model, setup = job.shape.model, Setup("ddp", 0, 8, 8, 1, 16, "bf16", "none", "chunked")
    merged = replace(setup, merged=True)
    held = [memory_per_rank(job.shape, each).activations for each in (setup, merged)]
    less = 4096 * 2 * model.intermediate_size * model.num_hidden_layers
    assert merged_bytes(job.shape, merged) == 2 * 2 * model.intermediate_size * model.hidden_size
    assert held[1] - held[0] == merged_bytes(job.shape, merged) - less
    tiled = replace(merged, tiled_mlp=True)
    assert merged_bytes(job.shape, tiled) == 2 * (28 + 2 * 4) * 128 * model.hidden_size
