"""Layers with a tiled MLP: equal losses and gradients, reversible; what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness.three_layers import SHAPE, build
from transformers import MistralConfig, MistralForCausalLM

from wikillm.config.load import load
from wikillm.core.errors import WikiLLMError
from wikillm.kernels import chunks
from wikillm.models.checkpointing import checkpoint_layers
from wikillm.models.patching import remove_patches
from wikillm.models.shape import ARCHITECTURES
from wikillm.models.tiled_mlp import tile_mlp
from wikillm.plan.memory import activation_bytes_per_token, memory_per_rank, tile_bytes
from wikillm.plan.strategy import Strategy
from wikillm.plan.workload import describe_workload


def outcome(model: torch.nn.Module) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    ids = torch.arange(2 * 37).view(2, 37) % 97
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss), [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_equal_the_stock_layers(
    architecture: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunks.MLP_CHUNKS, "cpu", (1, 24, 24))
    model = build(architecture).double()
    if checkpointing:
        checkpoint_layers(model, "full")
    wanted, truth = outcome(model)
    stock = model.model.layers[0].mlp.forward
    assert (
        str(tile_mlp(model, rows=74, device_type="cpu"))
        == "tiled, at most 24 rows (of 74 by 80 on cpu)"
    )
    assert model.model.layers[0].mlp.forward != stock
    found, gradients = outcome(model)
    assert found == pytest.approx(wanted, rel=1e-12) and len(gradients) == len(truth)
    for got, grad in zip(gradients, truth, strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-9, atol=1e-12)
    with pytest.raises(WikiLLMError, match="3 modules patched already"):
        tile_mlp(model, rows=74, device_type="cpu")  # tiled already
    remove_patches(model)
    assert model.model.layers[0].mlp.forward == stock
    assert outcome(model)[0] == wanted


def test_a_model_with_an_unknown_mlp_is_refused() -> None:
    with pytest.raises(WikiLLMError, match="MistralForCausalLM"):
        tile_mlp(MistralForCausalLM(MistralConfig(**SHAPE)), rows=74, device_type="cpu")


def test_the_plan_counts_chunks_instead_of_the_intermediate_activations() -> None:
    words = [
        "train.sequence_length=32768",
        "train.global_batch_tokens=4194304",
        "train.max_steps=10",
    ]
    resolved = load("pretrain-7b", words)
    workload = describe_workload(resolved, ranks=8, train_tokens=10**10)
    model = workload.model
    stock = Strategy("ddp", 0, 8, 8, 1, 16, "bf16")
    tiled = replace(stock, tiled_mlp=True)
    less = activation_bytes_per_token(workload, stock) - activation_bytes_per_token(workload, tiled)
    assert less == 8 * model.intermediate_size * model.num_hidden_layers
    held = [memory_per_rank(workload, each).activations for each in (stock, tiled)]
    assert held[0] - held[1] == 32_768 * less - tile_bytes(workload, tiled) > 0
