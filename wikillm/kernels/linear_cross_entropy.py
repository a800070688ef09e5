"""Output projection and cross entropy in one operation that never holds all logits.

The forward walks over chunks of rows: logits, softmax, loss, and at once both gradients; a chunk's logits are then
dropped. Peak memory is chunk x V instead of several times N x V, and the backward only multiplies by the gradient
that arrives. The arithmetic is that of `reference.linear_cross_entropy`: three products of N x V x H, one softmax.

The weight's gradient is summed in float32. Nothing waits for the device: no `.item()`, no data-dependent shapes.
Costs V x H float32 from the forward to the backward. Not differentiable twice, and one backward per forward.
Shapes: N rows (tokens), C rows of a chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F

from wikillm.kernels.float8_products import MULTIPLE, Float8Products

_TILE = 16_384  # rows of the weight's gradient that are multiplied at a time, on GPUs


def linear_cross_entropy(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    *,
    chunk_rows: int,
    count: torch.Tensor | float = 1,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    z_out: torch.Tensor | None = None,
    in_triton: bool = False,
    in_float8: bool = False,
) -> torch.Tensor:
    """Loss as in `reference.linear_cross_entropy`, a float32 scalar (float64 for float64 inputs).

    Args:
        chunk_rows: rows whose logits exist at a time.
        count: what the sum is divided by; a tensor stays on its device.
        z_out: a scalar that receives the z-loss's part of the result, detached: for a log, without a sync.
        in_triton: everything between the products is one kernel of ours (`triton_cross_entropy`); not for float64.
        in_float8: the products are `Float8Products`'; H and V must be multiples of 16, and float64 becomes float32.

    Without a gradient to compute only the loss is. Under autocast the products run in autocast's type.
    """
    with_grad = torch.is_grad_enabled() and (hidden_NH.requires_grad or weight_VH.requires_grad)
    divisor = torch.as_tensor(count, device=hidden_NH.device)
    if in_float8:
        hidden_NH, labels_N, chunk_rows = _in_sixteens(
            hidden_NH, labels_N, ignore_index, chunk_rows
        )
    options = (ignore_index, z_loss, chunk_rows, in_triton, in_float8)
    if with_grad:
        loss: torch.Tensor = _Chunked.apply(
            hidden_NH, weight_VH, labels_N, divisor, z_out, *options
        )  # type: ignore[no-untyped-call]
        return loss
    total, z_total, _, _ = _walk(
        hidden_NH.detach(),
        weight_VH.detach(),
        labels_N,
        *options,
        grad_hidden=False,
        grad_weight=False,
    )
    return _result(total, z_total, divisor, z_out)


def _result(
    total: torch.Tensor, z_total: torch.Tensor, divisor: torch.Tensor, z_out: torch.Tensor | None
) -> torch.Tensor:
    """The loss, with the z-loss's part copied out where it is asked for."""
    if z_out is not None:
        z_out.copy_(z_total / divisor)
    return (total + z_total) / divisor


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_N: torch.Tensor,
        divisor: torch.Tensor,
        z_out: torch.Tensor | None,
        ignore_index: int,
        z_loss: float,
        chunk_rows: int,
        in_triton: bool,
        in_float8: bool,
    ) -> torch.Tensor:
        total, z_total, grad_NH, grad_VH = _walk(
            hidden_NH,
            weight_VH,
            labels_N,
            ignore_index,
            z_loss,
            chunk_rows,
            in_triton,
            in_float8,
            grad_hidden=ctx.needs_input_grad[0],
            grad_weight=ctx.needs_input_grad[1],
        )
        ctx.gradients = grad_NH, grad_VH
        ctx.types = hidden_NH.dtype, weight_VH.dtype
        ctx.save_for_backward(divisor)
        return _result(total, z_total, divisor, z_out)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cross_entropy has one backward per forward: it scales its gradients in place"
            )
        (grad_NH, grad_VH), ctx.gradients = ctx.gradients, None
        # The factor is applied in float32, and only here: with fp16's loss scale in it, nothing underflows before.
        factor = grad_loss / ctx.saved_tensors[0]
        if grad_NH is not None:
            grad_NH = (grad_NH.to(factor.dtype) * factor).to(ctx.types[0])
        if grad_VH is not None:
            grad_VH = grad_VH.mul_(factor).to(ctx.types[1])
        return grad_NH, grad_VH, *(None,) * 8


def _walk(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    ignore_index: int,
    z_loss: float,
    chunk_rows: int,
    in_triton: bool,
    in_float8: bool,
    *,
    grad_hidden: bool,
    grad_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Sums of the cross entropies and of the z-losses, and the gradients of both together: the hidden's in the
    products' type, the weight's wide."""
    device_type = hidden_NH.device.type
    if torch.is_autocast_enabled(device_type):
        narrow = torch.get_autocast_dtype(device_type)
        hidden_NH, weight_VH = hidden_NH.to(narrow), weight_VH.to(narrow)
    wide = torch.promote_types(hidden_NH.dtype, torch.float32)
    n_rows, vocab = hidden_NH.shape[0], weight_VH.shape[0]
    chunk_rows = max(1, min(chunk_rows, n_rows))
    total = torch.zeros((), dtype=wide, device=hidden_NH.device)
    z_total = torch.zeros_like(total)
    grad_NH = (
        torch.empty_like(hidden_NH, memory_format=torch.contiguous_format) if grad_hidden else None
    )
    grad_VH = (
        torch.zeros(weight_VH.shape, dtype=wide, device=weight_VH.device) if grad_weight else None
    )
    buffer_CV = torch.empty(chunk_rows, vocab, dtype=hidden_NH.dtype, device=hidden_NH.device)
    step = _cross_entropy_in_triton if in_triton else _cross_entropy
    with torch.autocast(device_type, enabled=False):
        products: _Products = (Float8Products if in_float8 else _PlainProducts)(
            hidden_NH, weight_VH
        )
        for first in range(0, n_rows, chunk_rows):
            rows = slice(first, min(first + chunk_rows, n_rows))
            labels_C = labels_N[rows]
            logits_CV = products.logits(rows, buffer_CV[: len(labels_C)])
            loss, z, grad_CV = step(
                logits_CV, labels_C, ignore_index, z_loss, with_gradient=grad_hidden or grad_weight
            )
            total, z_total = total + loss, z_total + z
            if grad_CV is None:
                continue
            grad_CV = products.gradient(grad_CV, (labels_C != ignore_index).unsqueeze(1))
            if grad_NH is not None:
                products.grad_hidden(grad_CV, grad_NH[rows])
            if grad_VH is not None:
                products.add_grad_weight(grad_VH, grad_CV, rows)
    return total, z_total, grad_NH, grad_VH


class _Products(Protocol):
    """The three products of a chunk of rows. A row without a label adds nothing to any gradient."""

    def logits(self, rows: slice, out_CV: torch.Tensor) -> torch.Tensor: ...

    def gradient(self, grad_CV: torch.Tensor, has_label_C1: torch.Tensor) -> torch.Tensor: ...

    def grad_hidden(self, grad_CV: torch.Tensor, out_CH: torch.Tensor) -> None: ...

    def add_grad_weight(
        self, total_VH: torch.Tensor, grad_CV: torch.Tensor, rows: slice
    ) -> None: ...


class _PlainProducts:
    """In the type of the hidden states. Rows without a label are left out on C x H values, rather than on C x V."""

    def __init__(self, hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> None:
        self._hidden_NH, self._weight_VH = hidden_NH, weight_VH
        self._has_label_C1 = hidden_NH.new_empty(0)  # of the chunk whose gradient came last

    def logits(self, rows: slice, out_CV: torch.Tensor) -> torch.Tensor:
        return torch.mm(self._hidden_NH[rows], self._weight_VH.t(), out=out_CV)

    def gradient(self, grad_CV: torch.Tensor, has_label_C1: torch.Tensor) -> torch.Tensor:
        self._has_label_C1 = has_label_C1
        # Two products read it: once narrow, where both want it narrow. On a CPU the weight's gradient takes it wide.
        return grad_CV.to(self._weight_VH.dtype) if grad_CV.is_cuda else grad_CV

    def grad_hidden(self, grad_CV: torch.Tensor, out_CH: torch.Tensor) -> None:
        product_CH = torch.mm(grad_CV.to(self._weight_VH.dtype), self._weight_VH)
        torch.mul(product_CH, self._has_label_C1, out=out_CH)

    def add_grad_weight(self, total_VH: torch.Tensor, grad_CV: torch.Tensor, rows: slice) -> None:
        add_product(total_VH, grad_CV, self._hidden_NH[rows] * self._has_label_C1)


def _in_sixteens(
    hidden_NH: torch.Tensor, labels_N: torch.Tensor, ignore_index: int, chunk_rows: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """With rows of zeros and without a label at the end, so that rows and rows of a chunk are multiples of 16."""
    if hidden_NH.dtype == torch.float64:
        hidden_NH = hidden_NH.float()
    more = -len(hidden_NH) % MULTIPLE
    if more:
        hidden_NH, labels_N = (
            F.pad(hidden_NH, (0, 0, 0, more)),
            F.pad(labels_N, (0, more), value=ignore_index),
        )
    return hidden_NH, labels_N, -(-chunk_rows // MULTIPLE) * MULTIPLE


_Found = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor | None
]  # sums of the losses and z-losses, the logits' gradient


def _cross_entropy(
    logits_CV: torch.Tensor,
    labels_C: torch.Tensor,
    ignore_index: int,
    z_loss: float,
    *,
    with_gradient: bool,
) -> _Found:
    """A chunk in plain operations; the gradient is wide, and means nothing in rows without a label."""
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    has_label_C1 = (labels_C != ignore_index).unsqueeze(1)
    labels_C1 = torch.where(has_label_C1, labels_C.unsqueeze(1), 0)
    prob_CV, lse_C1, label_logit_C1 = _softmax(logits_CV, labels_C1, wide)
    loss = torch.where(has_label_C1, lse_C1 - label_logit_C1, 0.0).sum()
    z = (
        torch.where(has_label_C1, z_loss * lse_C1.square(), 0.0).sum()
        if z_loss
        else torch.zeros_like(loss)
    )
    if not with_gradient:
        return loss, z, None
    if z_loss:
        prob_CV.mul_(1 + 2 * z_loss * lse_C1)
    # Now the logits' gradient. One index per row, so scatter_ needs no atomic sums and repeats bit by bit.
    return loss, z, prob_CV.scatter_(1, labels_C1, prob_CV.gather(1, labels_C1) - 1)


def _cross_entropy_in_triton(
    logits_CV: torch.Tensor,
    labels_C: torch.Tensor,
    ignore_index: int,
    z_loss: float,
    *,
    with_gradient: bool,
) -> _Found:
    """A chunk in one kernel; the gradient lies over the logits, in their type."""
    from wikillm.kernels.triton_cross_entropy import cross_entropy_in_place

    loss, z = cross_entropy_in_place(
        logits_CV, labels_C, ignore_index=ignore_index, z_loss=z_loss, with_gradient=with_gradient
    )
    return loss, z, logits_CV if with_gradient else None


def _softmax(
    logits_CV: torch.Tensor, labels_C1: torch.Tensor, wide: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities (over the logits' own memory where the type allows it), logsumexp, and the label's logit.

    logsumexp = max - log(softmax at the max), which is at least 1/V, so exact: two more reads of the chunk,
    where torch.logsumexp would be slower than the softmax itself (measured on CPU).
    """
    label_logit_C1 = logits_CV.gather(1, labels_C1).to(wide)
    top_C1 = logits_CV.amax(1, keepdim=True).to(wide)
    # From bf16 softmax(dtype=float32) makes a wide copy and then another: only fp16 has a kernel that
    # widens, which saves a pass, not memory, and is not worth a way of its own.
    wide_CV = logits_CV.to(wide)
    prob_CV = torch.softmax(wide_CV, 1, out=wide_CV)
    lse_C1 = top_C1 - prob_CV.amax(1, keepdim=True).log()
    return prob_CV, lse_C1, label_logit_C1


def add_product(total_VH: torch.Tensor, grad_CV: torch.Tensor, hidden_CH: torch.Tensor) -> None:
    """total += grad^T @ hidden with float32 sums; the factors are narrow where the device multiplies those faster."""
    if total_VH.dtype == hidden_CH.dtype:
        total_VH.addmm_(grad_CV.t(), hidden_CH)
    elif total_VH.is_cuda:
        narrow_CV = grad_CV.to(hidden_CH.dtype)
        # mm's float32 output of narrow factors is documented since torch 2.8, addmm's was mended later. In tiles of the
        # vocabulary, so that the product beside the sum stays small.
        for first in range(0, total_VH.shape[0], _TILE):
            tile = slice(first, first + _TILE)
            total_VH[tile] += torch.mm(narrow_CV[:, tile].t(), hidden_CH, out_dtype=total_VH.dtype)
    else:
        total_VH.addmm_(grad_CV.to(total_VH.dtype).t(), hidden_CH.to(total_VH.dtype))
