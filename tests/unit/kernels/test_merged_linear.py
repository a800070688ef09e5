"""Merged linear layers and the SwiGLU of halves against the separate operations, and what they keep."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from wikillm.kernels.merged_linear import merged_linear, swiglu_of_halves

SIZES = (24, 8, 8)


def inputs(dtype: torch.dtype, *, biased: bool) -> list[torch.Tensor]:
    """x of (3, 7, 16), weights and biases; the same numbers in every dtype."""
    torch.manual_seed(3)
    shapes: list[tuple[int, ...]] = [(3, 7, 16), *((size, 16) for size in SIZES)]
    shapes += [(size,) for size in SIZES] if biased else []
    return [torch.randn(s, dtype=torch.float64).to(torch.bfloat16).to(dtype).requires_grad_() for s in shapes]


def separate(x: torch.Tensor, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([F.linear(x, w, b) for w, b in zip(weights, biases or [None] * len(weights), strict=True)], -1)


def outcome(function: object, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    out = function(tensors[0], tensors[1:4], tensors[4:])  # type: ignore[operator]
    out.backward(torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out.dtype))
    return [out.detach(), *(tensor.grad for tensor in tensors)]  # type: ignore[list-item]


def distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.012)])
@pytest.mark.parametrize("biased", [False, True])
def test_outputs_and_gradients_are_those_of_separate_layers(dtype: torch.dtype, bound: float, biased: bool) -> None:
    truth = outcome(separate, inputs(torch.float64, biased=biased))
    for wanted, got in zip(truth, outcome(merged_linear, inputs(dtype, biased=biased)), strict=True):
        assert got.dtype == dtype and got.shape == wanted.shape
        assert distance(got, wanted) < bound


def test_under_autocast_weights_keep_their_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outcome(merged_linear, inputs(torch.float32, biased=True))
    assert found[0].dtype == torch.bfloat16 and {grad.dtype for grad in found[1:]} == {torch.float32}
    for wanted, got in zip(outcome(separate, inputs(torch.float64, biased=True)), found, strict=True):
        assert distance(got, wanted) < 0.012


def test_no_copy_of_the_weights_waits_for_the_backward() -> None:
    tensors = inputs(torch.float32, biased=True)
    own, kept = {tensor.data_ptr() for tensor in tensors}, list[torch.Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        merged_linear(tensors[0], tensors[1:4], tensors[4:])
    assert kept and {tensor.data_ptr() for tensor in kept} <= own


@pytest.mark.parametrize("frozen", ["x", "weights", "biases"])
def test_only_the_gradients_that_are_wanted(frozen: str) -> None:
    tensors = inputs(torch.float32, biased=True)
    groups = {"x": tensors[:1], "weights": tensors[1:4], "biases": tensors[4:]}
    for tensor in groups[frozen]:
        tensor.requires_grad_(False)
    merged_linear(tensors[0], tensors[1:4], tensors[4:]).sum().backward()
    for name, group in groups.items():
        assert all((tensor.grad is None) == (name == frozen) for tensor in group)


def test_swiglu_of_halves_is_the_separate_operations() -> None:
    torch.manual_seed(3)
    halves = torch.randn(3, 7, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu_of_halves, halves)
    gate, up = halves.detach().chunk(2, -1)
    torch.testing.assert_close(swiglu_of_halves(halves).detach(), F.silu(gate) * up, rtol=1e-12, atol=1e-12)
