"""Several linear layers of one input as one matrix product, and the SwiGLU of a merged gate and up.

The weights stay the parameters they are: each call copies them side by side, forward and backward, and the copy is gone
when the call ends; what waits for the backward is the input and the weights themselves. So names, optimizer states,
ZeRO partitions and checkpoints know nothing of it. The copy moves 2 elements per weight where the product does 2 N
operations per weight: little from some hundred rows on, dear for single tokens.

Not differentiable twice. Under autocast the products run in autocast's type. The products with copied weights are
operators that torch.compile does not look into: traced, the copies would be kept for the backward.
Shapes: N rows (tokens), H inputs, O outputs of all layers together, F intermediate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F


def merged_linear(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """cat([F.linear(x, w, b) for w, b in ...], -1) for x of (..., H) and weights of (O_i, H), as one product.

    Every layer has a bias or none has.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):  # the weights are cast inside, so that no narrow copy of them is kept
        x = x.to(torch.get_autocast_dtype(device_type))
    out_NO: torch.Tensor = _MergedLinear.apply(x.reshape(-1, x.shape[-1]), len(weights), *weights, *biases)  # type: ignore[no-untyped-call]
    return out_NO.view(*x.shape[:-1], out_NO.shape[-1])


def swiglu_of_halves(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for gate_up of (..., 2F), gate first. The gradient is written into one tensor of that shape.

    Keeps gate_up alone for the backward, where separate operations keep silu(gate) besides.
    """
    out: torch.Tensor = _SwigluOfHalves.apply(gate_up)  # type: ignore[no-untyped-call]
    return out


class _MergedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NH: torch.Tensor, count: int, *parts: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_NH, *parts)
        ctx.count = count
        out_NO: torch.Tensor = _product(x_NH, list(parts[:count]), list(parts[count:]))
        return out_NO

    @staticmethod
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x_NH, *parts = ctx.saved_tensors
        weights, wanted = parts[: ctx.count], ctx.needs_input_grad
        sizes = [weight.shape[0] for weight in weights]
        grad_NH = _grad_input(grad_NO, list(weights)) if wanted[0] else None
        own: list[torch.Tensor | None] = [None] * len(parts)
        if any(wanted[2 : 2 + ctx.count]):
            own[: ctx.count] = torch.mm(grad_NO.t(), x_NH).split(sizes)
        if any(wanted[2 + ctx.count :]):
            own[ctx.count :] = grad_NO.sum(0).split(sizes)
        return grad_NH, None, *(g if g is None else g.to(part.dtype) for g, part in zip(own, parts, strict=True))


@torch.library.custom_op("wikillm::merged_linear", mutates_args=())
def _product(x_NH: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    with torch.autocast(x_NH.device.type, enabled=False):
        weight_OH = _side_by_side(weights, x_NH.dtype)
        if not biases:
            return torch.mm(x_NH, weight_OH.t())
        return torch.addmm(_side_by_side(biases, x_NH.dtype), x_NH, weight_OH.t())


@torch.library.custom_op("wikillm::merged_linear_grad_input", mutates_args=())
def _grad_input(grad_NO: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    with torch.autocast(grad_NO.device.type, enabled=False):
        return torch.mm(grad_NO, _side_by_side(weights, grad_NO.dtype))


def _side_by_side(tensors: Sequence[torch.Tensor], kind: torch.dtype) -> torch.Tensor:
    return torch.cat([tensor.to(kind) for tensor in tensors])


@_product.register_fake
def _(x_NH: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    return x_NH.new_empty(x_NH.shape[0], sum(weight.shape[0] for weight in weights))


@_grad_input.register_fake
def _(grad_NO: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return grad_NO.new_empty(grad_NO.shape[0], weights[0].shape[1])


class _SwigluOfHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, -1)
        grad_up.copy_(F.silu(gate).mul_(grad))
        grad_gate.copy_(torch.ops.aten.silu_backward(up * grad, gate))
        return grad_gate_up
