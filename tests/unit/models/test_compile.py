"""Compiled layers: the same numbers, one graph, and only for the shapes of training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from harness.three_layers import build, compiled_graphs

from wikillm.models.checkpointing import checkpoint_layers
from wikillm.models.compile import compile_layers
from wikillm.models.fused_loss import patch_loss
from wikillm.models.patching import remove_patches
from wikillm.models.tiled_mlp import tile_mlp

pytestmark = pytest.mark.usefixtures("forget_graphs")


def ids(batch: int = 2, length: int = 8) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(2))


def gradients(model: Any, tokens: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("architecture", "kernels", "checkpointing"),
    [
        ("qwen2", (), False),
        ("qwen3", ("tiled",), True),
        pytest.param("qwen2", ("tiled",), True, marks=pytest.mark.deep),
        pytest.param("qwen3", ("tiled",), False, marks=pytest.mark.deep),
        pytest.param("qwen3", (), True, marks=pytest.mark.deep),
    ],
)
def test_one_graph_for_all_layers_and_the_same_numbers(
    architecture: str, kernels: tuple[str, ...], checkpointing: bool
) -> None:
    stock = build(architecture)
    ours = copy.deepcopy(stock)
    patch_loss(ours, rows=16, device_type="cpu")
    if "tiled" in kernels:
        tile_mlp(ours, rows=16, device_type="cpu")
    if checkpointing:
        checkpoint_layers(ours, "full")
        ours.train(), stock.train()
    assert compile_layers(ours, {(2, 8)}, backend="aot_eager") == 3
    expected, found = gradients(stock, ids()), gradients(ours, ids())
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert compiled_graphs() == 1
    gradients(ours, ids())
    assert compiled_graphs() == 1, "a second step compiles nothing"


def test_generated_code_gives_the_same_numbers() -> None:
    """Inductor itself, forward and backward: the code that runs in training."""
    stock = build("qwen2")
    ours = copy.deepcopy(stock)
    compile_layers(ours, {(2, 8)})
    expected, found = gradients(stock, ids()), gradients(ours, ids())
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_other_lengths_and_generation_compile_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model = build("qwen2")
    compile_layers(model, {(2, 8)}, backend="eager")
    for _ in range(2):
        model(input_ids=ids(1, 5), use_cache=False)
    warning = (
        "warning: a training step of 1 x 5 tokens is not compiled: "
        "the layers are compiled for [(2, 8)]\n"
    )
    assert capsys.readouterr().err == warning, "once, and not for each layer"
    model.eval().generate(ids(1, 8), max_new_tokens=4, do_sample=False, use_cache=True)
    assert compiled_graphs() == 0
    model(input_ids=ids(), use_cache=False)
    assert compiled_graphs() == 1 and not capsys.readouterr().err


def test_a_graph_break_is_an_error() -> None:
    model = build("qwen2")
    original = model.model.layers[1].mlp.forward

    def breaks(hidden: torch.Tensor) -> Any:
        torch._dynamo.graph_break()
        return original(hidden)

    model.model.layers[1].mlp.forward = breaks
    compile_layers(model, {(2, 8)}, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        model(input_ids=ids(), use_cache=False)


def test_saved_weights_keep_their_names_and_the_patch_is_reversible() -> None:
    model = build("qwen2")
    names = list(model.state_dict())
    compile_layers(model, {(2, 8)}, backend="eager")
    assert list(model.state_dict()) == names
    remove_patches(model)
    model(input_ids=ids(), use_cache=False)
    assert compiled_graphs() == 0
