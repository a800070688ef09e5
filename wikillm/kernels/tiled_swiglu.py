"""A decoder layer's SwiGLU over chunks of rows, each computed anew in the backward: nothing N x F is ever whole.

`reference.swiglu` keeps four N x F tensors per layer from the forward to the backward; this keeps its input alone, which
the layer has anyway. Two of the nine products are done twice. Working memory is 4 chunks of C x F, and in 16 bit the
weights' gradients in float32, in which they are summed over the chunks. Each weight gets one gradient per backward, so
hooks on it fire once. Not differentiable twice. Under autocast the products run in autocast's type.

The arithmetic stands in two operators that torch.compile does not look into: traced, the backward's products would be
recognised as the forward's, and kept. Shapes: N rows (tokens), C rows of a chunk, H hidden, F intermediate.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from wikillm.kernels.linear_cross_entropy import add_product


def tiled_swiglu(
    x: torch.Tensor,
    gate_FH: torch.Tensor,
    up_FH: torch.Tensor,
    down_HF: torch.Tensor,
    *,
    chunk_rows: int,
) -> torch.Tensor:
    """down @ (silu(gate @ x) * (up @ x)) for x of shape (..., H), as `reference.swiglu`.

    Args:
        chunk_rows: rows whose intermediate activations exist at a time.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(
        device_type
    ):  # the weights are cast inside, so that no narrow copy of them is kept
        x = x.to(torch.get_autocast_dtype(device_type))
    x_NH = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        x_NH = _KeepInput.apply(x_NH, gate_FH, up_FH, down_HF, chunk_rows)  # type: ignore[no-untyped-call]
    out_NH: torch.Tensor = _Products.apply(x_NH, gate_FH, up_FH, down_HF, chunk_rows)  # type: ignore[no-untyped-call]
    return out_NH.view(*x.shape[:-1], out_NH.shape[-1])


class _KeepInput(torch.autograd.Function):
    """Its output is its input; its backward is that of the whole operation, to which `_Products` hands the gradient.

    Apart from the products, and before them, so that a checkpointed layer's recomputation, which ends with the last
    tensor that was saved, does not do them for nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NH: torch.Tensor,
        gate_FH: torch.Tensor,
        up_FH: torch.Tensor,
        down_HF: torch.Tensor,
        chunk_rows: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(x_NH, gate_FH, up_FH, down_HF)
        ctx.chunk_rows = chunk_rows
        return x_NH.view_as(x_NH)

    @staticmethod
    def backward(ctx: Any, grad_NH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        gradients = _backward(grad_NH, *ctx.saved_tensors, ctx.chunk_rows)
        return *(
            g if wanted else None
            for g, wanted in zip(gradients, ctx.needs_input_grad, strict=False)
        ), None


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NH: torch.Tensor,
        gate_FH: torch.Tensor,
        up_FH: torch.Tensor,
        down_HF: torch.Tensor,
        chunk_rows: int,
    ) -> torch.Tensor:
        out_NH: torch.Tensor = _forward(x_NH, gate_FH, up_FH, down_HF, chunk_rows)
        return out_NH

    @staticmethod
    def backward(ctx: Any, grad_NH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return grad_NH, None, None, None, None


@torch.library.custom_op("wikillm::tiled_swiglu", mutates_args=())
def _forward(
    x_NH: torch.Tensor,
    gate_FH: torch.Tensor,
    up_FH: torch.Tensor,
    down_HF: torch.Tensor,
    chunk_rows: int,
) -> torch.Tensor:
    n_rows = x_NH.shape[0]
    chunk_rows = max(1, min(chunk_rows, n_rows))
    with torch.autocast(x_NH.device.type, enabled=False):
        gate_FH, up_FH, down_HF = (weight.to(x_NH.dtype) for weight in (gate_FH, up_FH, down_HF))
        out_NH = x_NH.new_empty(n_rows, down_HF.shape[0])
        buffers = [x_NH.new_empty(chunk_rows, gate_FH.shape[0]) for _ in range(2)]
        for first in range(0, n_rows, chunk_rows):
            x_CH = x_NH[first : first + chunk_rows]
            gate_CF, up_CF = (buffer[: len(x_CH)] for buffer in buffers)
            torch.mm(x_CH, gate_FH.t(), out=gate_CF)
            torch.mm(x_CH, up_FH.t(), out=up_CF)
            F.silu(gate_CF, inplace=True).mul_(up_CF)
            torch.mm(gate_CF, down_HF.t(), out=out_NH[first : first + chunk_rows])
    return out_NH


@torch.library.custom_op("wikillm::tiled_swiglu_backward", mutates_args=())
def _backward(
    grad_NH: torch.Tensor,
    x_NH: torch.Tensor,
    gate_FH: torch.Tensor,
    up_FH: torch.Tensor,
    down_HF: torch.Tensor,
    chunk_rows: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the input and of the three weights, each in the type of what it belongs to."""
    n_rows, weights = x_NH.shape[0], (gate_FH, up_FH, down_HF)
    types = [weight.dtype for weight in weights]
    chunk_rows = max(1, min(chunk_rows, n_rows))
    wide = torch.promote_types(x_NH.dtype, torch.float32)
    with torch.autocast(x_NH.device.type, enabled=False):
        grad_NH = grad_NH.to(x_NH.dtype)
        gate_FH, up_FH, down_HF = (weight.to(x_NH.dtype) for weight in weights)
        grad_x_NH = torch.empty_like(x_NH, memory_format=torch.contiguous_format)
        sums = [torch.zeros(weight.shape, dtype=wide, device=weight.device) for weight in weights]
        buffers = [x_NH.new_empty(chunk_rows, gate_FH.shape[0]) for _ in range(4)]
        for first in range(0, n_rows, chunk_rows):
            rows = slice(first, min(first + chunk_rows, n_rows))
            x_CH, grad_CH = x_NH[rows], grad_NH[rows]
            gate_CF, up_CF, silu_CF, inner_CF = (buffer[: len(x_CH)] for buffer in buffers)
            torch.mm(x_CH, gate_FH.t(), out=gate_CF)
            torch.mm(x_CH, up_FH.t(), out=up_CF)
            torch.ops.aten.silu.out(gate_CF, out=silu_CF)
            add_product(sums[2], grad_CH, torch.mul(silu_CF, up_CF, out=inner_CF))
            torch.mm(grad_CH, down_HF, out=inner_CF)  # now the gradient of what goes into down
            silu_CF.mul_(inner_CF)  # of up @ x
            inner_CF.mul_(up_CF)  # of silu(gate @ x), and next of gate @ x
            torch.ops.aten.silu_backward.grad_input(inner_CF, gate_CF, grad_input=inner_CF)
            add_product(sums[0], inner_CF, x_CH)
            add_product(sums[1], silu_CF, x_CH)
            torch.mm(inner_CF, gate_FH, out=grad_x_NH[rows]).addmm_(silu_CF, up_FH)
        del buffers
        grad_weights = [sums.pop(0).to(kind) for kind in types]
    return grad_x_NH, grad_weights[0], grad_weights[1], grad_weights[2]


@_forward.register_fake
def _(
    x_NH: torch.Tensor,
    gate_FH: torch.Tensor,
    up_FH: torch.Tensor,
    down_HF: torch.Tensor,
    chunk_rows: int,
) -> torch.Tensor:
    return x_NH.new_empty(x_NH.shape[0], down_HF.shape[0])


@_backward.register_fake
def _(
    grad_NH: torch.Tensor,
    x_NH: torch.Tensor,
    gate_FH: torch.Tensor,
    up_FH: torch.Tensor,
    down_HF: torch.Tensor,
    chunk_rows: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    gradients = [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (x_NH, gate_FH, up_FH, down_HF)
    ]
    return gradients[0], gradients[1], gradients[2], gradients[3]
