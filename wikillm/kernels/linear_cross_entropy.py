"""Output projection and cross entropy in one operation that never holds all logits.

For each chunk of rows the forward computes logits, softmax, loss and both gradients, and drops the
logits. Peak memory is chunk x V instead of several times N x V; the backward only scales the
gradients. The arithmetic is that of `reference.linear_cross_entropy`: three products of N x V x H,
one softmax.

The weight's gradient is summed in float32: V x H values, kept from the forward to the backward.
There is no synchronisation: no `.item()`, no data-dependent shapes. The operation is not
differentiable twice and has one backward per forward.
Shapes: N rows (tokens), C rows of a chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from wikillm.experimental.registry import LossExperiment

_TILE = 16_384  # rows of the weight's gradient that are multiplied at a time
_NARROW_CHUNK = 1 / 2
"""Factor on the chunk's rows on a CPU in 16 bit. A chunk is then held in both types and the weight
is copied; with the factor a run takes no more memory than in float32."""


def linear_cross_entropy(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    *,
    chunk_rows: int,
    count: torch.Tensor | float = 1,
    ignore_index: int = -100,
    experiment: LossExperiment | None = None,
) -> torch.Tensor:
    """Loss as in `reference.linear_cross_entropy`, a float32 scalar (float64 for float64 inputs).

    Args:
        chunk_rows: rows whose logits are in memory at a time.
        count: divisor of the sum; a tensor stays on its device.
        experiment: replaces parts of the operation.

    If no input needs a gradient, only the loss is computed. Under autocast the products run in
    autocast's type.
    """
    with_grad = torch.is_grad_enabled() and (hidden_NH.requires_grad or weight_VH.requires_grad)
    divisor = torch.as_tensor(count, device=hidden_NH.device)
    if experiment is not None and experiment.prepare is not None:
        hidden_NH, labels_N, chunk_rows = experiment.prepare(
            hidden_NH, labels_N, ignore_index, chunk_rows
        )
    options: tuple[Any, ...] = (ignore_index, chunk_rows, experiment)
    if with_grad:
        loss: torch.Tensor = _Chunked.apply(hidden_NH, weight_VH, labels_N, divisor, *options)  # type: ignore[no-untyped-call]
        return loss
    inputs = (hidden_NH.detach(), weight_VH.detach(), labels_N)
    return _loss_and_gradients(*inputs, *options, wanted=(False, False))[0] / divisor


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_N: torch.Tensor,
        divisor: torch.Tensor,
        *options: Any,
    ) -> torch.Tensor:
        total, grad_NH, grad_VH = _loss_and_gradients(
            hidden_NH, weight_VH, labels_N, *options, wanted=ctx.needs_input_grad[:2]
        )
        ctx.gradients = grad_NH, grad_VH
        ctx.types = hidden_NH.dtype, weight_VH.dtype
        ctx.save_for_backward(divisor)
        return total / divisor

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cross_entropy has one backward per forward: "
                "it scales its gradients in place"
            )
        grad_NH, grad_VH = ctx.gradients
        ctx.gradients = None
        # The factor, which includes fp16's loss scale, is applied last and in float32, so that no
        # value underflows before.
        factor = grad_loss / ctx.saved_tensors[0]
        if grad_NH is not None:
            grad_NH = (grad_NH.to(factor.dtype) * factor).to(ctx.types[0])
        if grad_VH is not None:
            grad_VH = grad_VH.mul_(factor).to(ctx.types[1])
        return grad_NH, grad_VH, *(None,) * 5


def _loss_and_gradients(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    ignore_index: int,
    chunk_rows: int,
    experiment: LossExperiment | None,
    *,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Sum of the cross entropies, and its gradients.

    `wanted`: whether to compute the gradient of the hidden states (in the products' type), and that
    of the weight (in the wide type).
    """
    device_type = hidden_NH.device.type
    if torch.is_autocast_enabled(device_type):
        narrow = torch.get_autocast_dtype(device_type)
        hidden_NH = hidden_NH.to(narrow)
        weight_VH = weight_VH.to(narrow)
    if device_type == "cpu" and hidden_NH.element_size() < 4:
        chunk_rows = max(1, int(chunk_rows * _NARROW_CHUNK))
    # Allocate sums, gradients and buffers once for all chunks: new buffers would cost page faults.
    wide = torch.promote_types(hidden_NH.dtype, torch.float32)
    n_rows = hidden_NH.shape[0]
    chunk_rows = max(1, min(chunk_rows, n_rows))
    total = torch.zeros((), dtype=wide, device=hidden_NH.device)
    grad_NH = grad_VH = None
    if wanted[0]:
        grad_NH = torch.empty_like(hidden_NH, memory_format=torch.contiguous_format)
    if wanted[1]:
        grad_VH = torch.zeros(weight_VH.shape, dtype=wide, device=weight_VH.device)
    buffer_CV = hidden_NH.new_empty(chunk_rows, weight_VH.shape[0])
    # Take the experiment's products and loss, or the plain ones.
    make_products: Any = (experiment and experiment.products) or _PlainProducts
    chunk_loss: Any = experiment and experiment.chunk_loss
    if chunk_loss is None:
        wide_CV = buffer_CV if buffer_CV.dtype == wide else torch.empty_like(buffer_CV, dtype=wide)
        chunk_loss = partial(_chunk_loss, wide_CV)
    with torch.autocast(device_type, enabled=False):
        # For each chunk: logits, loss and its gradient, then the two products with the gradient.
        products = make_products(hidden_NH, weight_VH)
        for first in range(0, n_rows, chunk_rows):
            rows = slice(first, min(first + chunk_rows, n_rows))
            labels_C = labels_N[rows]
            logits_CV = products.logits(rows, buffer_CV[: len(labels_C)])
            loss, grad_CV = chunk_loss(logits_CV, labels_C, ignore_index, with_gradient=any(wanted))
            total = total + loss
            if grad_CV is None:
                continue
            grad_CV = products.gradient(grad_CV, (labels_C != ignore_index).unsqueeze(1))
            if grad_NH is not None:
                products.grad_hidden(grad_CV, grad_NH[rows])
            if grad_VH is not None:
                products.add_grad_weight(grad_VH, grad_CV, rows)
    return total, grad_NH, grad_VH


class _PlainProducts:
    """The three products of a chunk, in the type of the hidden states.

    A row without a label adds nothing to a gradient: it is zeroed on C x H values, not on C x V.
    The logits' gradient reuses the logits' memory.
    """

    def __init__(self, hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> None:
        self._hidden_NH = hidden_NH
        self._weight_VH = weight_VH
        self._has_label_C1 = hidden_NH.new_empty(0)  # set by `gradient` for its chunk
        self._logits_CV = hidden_NH.new_empty(0)

    def logits(self, rows: slice, out_CV: torch.Tensor) -> torch.Tensor:
        self._logits_CV = out_CV
        return torch.mm(self._hidden_NH[rows], self._weight_VH.t(), out=out_CV)

    def gradient(self, grad_CV: torch.Tensor, has_label_C1: torch.Tensor) -> torch.Tensor:
        self._has_label_C1 = has_label_C1
        # Both products that read the gradient need the weight's type: cast it once.
        same = grad_CV.dtype == self._logits_CV.dtype
        return grad_CV if same else self._logits_CV.copy_(grad_CV)

    def grad_hidden(self, grad_CV: torch.Tensor, out_CH: torch.Tensor) -> None:
        product_CH = torch.mm(grad_CV, self._weight_VH)
        torch.mul(product_CH, self._has_label_C1, out=out_CH)

    def add_grad_weight(self, total_VH: torch.Tensor, grad_CV: torch.Tensor, rows: slice) -> None:
        add_product(total_VH, grad_CV, self._hidden_NH[rows] * self._has_label_C1)


def _chunk_loss(
    wide_CV: torch.Tensor,
    logits_CV: torch.Tensor,
    labels_C: torch.Tensor,
    ignore_index: int,
    *,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sum of the losses, and the logits' gradient in the memory of `wide_CV`.

    In rows without a label the gradient is undefined.
    """
    wide_CV = wide_CV[: len(labels_C)]
    has_label_C1 = (labels_C != ignore_index).unsqueeze(1)
    labels_C1 = torch.where(has_label_C1, labels_C.unsqueeze(1), 0)
    prob_CV, lse_C1, label_logit_C1 = _softmax(logits_CV, labels_C1, wide_CV)
    loss = torch.where(has_label_C1, lse_C1 - label_logit_C1, 0.0).sum()
    if not with_gradient:
        return loss, None
    # One index per row, so scatter_ needs no atomic sums and repeats bit by bit.
    return loss, prob_CV.scatter_(1, labels_C1, prob_CV.gather(1, labels_C1) - 1)


def _softmax(
    logits_CV: torch.Tensor, labels_C1: torch.Tensor, wide_CV: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities (in `wide_CV`, which may be the logits), logsumexp, label's logit.

    logsumexp = max - log(softmax at the max), which is at least 1/V, so exact: two more reads of
    the chunk, where torch.logsumexp is slower than the softmax itself (measured on CPU).
    """
    label_logit_C1 = logits_CV.gather(1, labels_C1).to(wide_CV.dtype)
    top_C1 = logits_CV.amax(1, keepdim=True).to(wide_CV.dtype)
    if wide_CV.dtype != logits_CV.dtype:
        wide_CV.copy_(logits_CV)
    prob_CV = torch.softmax(wide_CV, 1, out=wide_CV)
    lse_C1 = top_C1 - prob_CV.amax(1, keepdim=True).log()
    return prob_CV, lse_C1, label_logit_C1


def add_product(total_VH: torch.Tensor, grad_CV: torch.Tensor, hidden_CH: torch.Tensor) -> None:
    """total += grad^T @ hidden, summed in the wide type; factors have the hidden states' type.

    On a GPU the product of narrow factors is wide; on a CPU it is rounded once per chunk.
    """
    if total_VH.dtype == hidden_CH.dtype:
        total_VH.addmm_(grad_CV.t(), hidden_CH)
        return
    narrow_CV = grad_CV.to(hidden_CH.dtype)
    # On a GPU, mm has a float32 output for narrow factors since torch 2.8; addmm's was fixed later.
    wide: Any = {"out_dtype": total_VH.dtype} if total_VH.is_cuda else {}
    # Multiply in tiles of the vocabulary, so that the temporary product stays small.
    for first in range(0, total_VH.shape[0], _TILE):
        tile = slice(first, first + _TILE)
        # add_ on the view: `total[tile] += ...` would also copy the result onto itself.
        total_VH[tile].add_(torch.mm(narrow_CV[:, tile].t(), hidden_CH, **wide))
