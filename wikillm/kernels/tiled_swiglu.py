"""A decoder layer's SwiGLU over chunks of rows, recomputed in the backward pass.

`reference.swiglu` keeps four N x F tensors per layer from the forward to the backward; this
operation keeps only its input, which the layer has anyway. Two of the nine products are computed
twice. Working memory is 4 chunks of C x F, and in 16 bit also the weights' gradients in float32, in
which they are summed over the chunks. Each weight gets one gradient per backward, so hooks on it
fire once. Not differentiable twice. Under autocast the products run in autocast's type.

torch.utils.checkpoint around each chunk does not serve: inside a checkpointed layer it repeats the
MLP's forward pass once more, and `models.checkpointing` would keep its products (see
docs/measurements/2026-11-24-tiled-mlp.md). Here the arithmetic is in two operators that neither
torch.compile nor a dispatch mode looks into. If they were traced, the backward's products would be
taken for the forward's, and kept.
Shapes: N rows (tokens), C rows of a chunk, H hidden, F intermediate.
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
        chunk_rows: rows whose intermediate activations are in memory at a time.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        # The weights are cast inside the operators, so that no narrow copy of them is kept.
        x = x.to(torch.get_autocast_dtype(device_type))
    x_NH = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        x_NH = _KeepInput.apply(x_NH, gate_FH, up_FH, down_HF, chunk_rows)  # type: ignore[no-untyped-call]
    out_NH: torch.Tensor = _Products.apply(x_NH, gate_FH, up_FH, down_HF, chunk_rows)  # type: ignore[no-untyped-call]
    return out_NH.view(*x.shape[:-1], out_NH.shape[-1])


class _KeepInput(torch.autograd.Function):
    """The identity, with the whole operation's backward; `_Products` passes its gradient through.

    It comes before the products: the recomputation of a checkpointed layer ends with the last saved
    tensor, and so leaves the products out.
    """

    @staticmethod
    def forward(ctx: Any, x_NH: torch.Tensor, *inputs: Any) -> torch.Tensor:
        *weights, ctx.chunk_rows = inputs
        ctx.save_for_backward(x_NH, *weights)
        return x_NH.view_as(x_NH)

    @staticmethod
    def backward(ctx: Any, grad_NH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x_NH, *weights = ctx.saved_tensors
        gradients = _backward(grad_NH, x_NH, weights, ctx.chunk_rows)
        wanted = ctx.needs_input_grad[:4]
        return *(
            g if is_wanted else None for g, is_wanted in zip(gradients, wanted, strict=True)
        ), None


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NH: torch.Tensor, *inputs: Any) -> torch.Tensor:
        *weights, chunk_rows = inputs
        out_NH: torch.Tensor = _forward(x_NH, weights, chunk_rows)
        return out_NH

    @staticmethod
    def backward(ctx: Any, grad_NH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return grad_NH, None, None, None, None


@torch.library.custom_op("wikillm::tiled_swiglu", mutates_args=())
def _forward(x_NH: torch.Tensor, weights: list[torch.Tensor], chunk_rows: int) -> torch.Tensor:
    with torch.autocast(x_NH.device.type, enabled=False):
        gate_FH, up_FH, down_HF = (weight.to(x_NH.dtype) for weight in weights)
        out_NH = x_NH.new_empty(x_NH.shape[0], down_HF.shape[0])
        chunk_rows = min(chunk_rows, x_NH.shape[0])
        buffers = [x_NH.new_empty(chunk_rows, gate_FH.shape[0]) for _ in range(2)]
        for x_CH, out_CH in zip(x_NH.split(chunk_rows), out_NH.split(chunk_rows), strict=True):
            gate_CF, up_CF = (buffer[: len(x_CH)] for buffer in buffers)
            torch.mm(x_CH, gate_FH.t(), out=gate_CF)
            torch.mm(x_CH, up_FH.t(), out=up_CF)
            F.silu(gate_CF, inplace=True).mul_(up_CF)
            torch.mm(gate_CF, down_HF.t(), out=out_CH)
    return out_NH


@torch.library.custom_op("wikillm::tiled_swiglu_backward", mutates_args=())
def _backward(
    grad_NH: torch.Tensor, x_NH: torch.Tensor, weights: list[torch.Tensor], chunk_rows: int
) -> list[torch.Tensor]:
    """Gradients of the input and of the three weights, each in the type of its tensor."""
    wide = torch.promote_types(x_NH.dtype, torch.float32)
    with torch.autocast(x_NH.device.type, enabled=False):
        grad_NH = grad_NH.to(x_NH.dtype)
        gate_FH, up_FH, down_HF = (weight.to(x_NH.dtype) for weight in weights)
        grad_x_NH = torch.empty_like(x_NH, memory_format=torch.contiguous_format)
        sums = [torch.zeros(weight.shape, dtype=wide, device=weight.device) for weight in weights]
        chunk_rows = min(chunk_rows, x_NH.shape[0])
        buffers = [x_NH.new_empty(chunk_rows, gate_FH.shape[0]) for _ in range(4)]
        for x_CH, grad_CH, grad_x_CH in zip(
            *(tensor.split(chunk_rows) for tensor in (x_NH, grad_NH, grad_x_NH)), strict=True
        ):
            # Repeat the forward pass up to the input of down.
            gate_CF, up_CF, silu_CF, inner_CF = (buffer[: len(x_CH)] for buffer in buffers)
            torch.mm(x_CH, gate_FH.t(), out=gate_CF)
            torch.mm(x_CH, up_FH.t(), out=up_CF)
            torch.ops.aten.silu.out(gate_CF, out=silu_CF)
            add_product(sums[2], grad_CH, torch.mul(silu_CF, up_CF, out=inner_CF))
            # Each gradient overwrites a buffer that is no longer needed. inner_CF gets the gradient
            # of down's input, and later that of gate @ x; silu_CF gets the gradient of up @ x.
            torch.mm(grad_CH, down_HF, out=inner_CF)
            silu_CF.mul_(inner_CF)
            inner_CF.mul_(up_CF)
            torch.ops.aten.silu_backward.grad_input(inner_CF, gate_CF, grad_input=inner_CF)
            add_product(sums[0], inner_CF, x_CH)
            add_product(sums[1], silu_CF, x_CH)
            torch.mm(inner_CF, gate_FH, out=grad_x_CH).addmm_(silu_CF, up_FH)
        del buffers
        # Cast the sums one at a time, so that each wide sum is freed before the next cast.
        return [grad_x_NH, *(sums.pop(0).to(weight.dtype) for weight in weights)]


@_forward.register_fake
def _(x_NH: torch.Tensor, weights: list[torch.Tensor], chunk_rows: int) -> torch.Tensor:
    return x_NH.new_empty(x_NH.shape[0], weights[2].shape[0])


@_backward.register_fake
def _(
    grad_NH: torch.Tensor, x_NH: torch.Tensor, weights: list[torch.Tensor], chunk_rows: int
) -> list[torch.Tensor]:
    contiguous = torch.contiguous_format
    return [torch.empty_like(tensor, memory_format=contiguous) for tensor in (x_NH, *weights)]
