"""Softmax, loss and the logits' gradient of a chunk in one Triton kernel, over the logits' own memory.

A program takes a row. It reads the row once for the maximum and the sum, the label's logit, and then once more to
replace every logit with the loss's gradient: 2 reads and 1 write per logit in the products' type, where separate
operations move about 24 bytes per logit in bf16 (counted from `linear_cross_entropy._cross_entropy`, not measured).

Importing this module needs Triton, which comes with torch's CUDA builds. Without a GPU it runs in Triton's
interpreter (TRITON_INTERPRET=1, set before the import), which is how the tests compare it with float64.
Shapes: C rows of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 8192  # logits that a program holds at a time; not tuned on a GPU yet
_WARPS = 16


@triton.jit
def _row(  # type: ignore[no-untyped-def]  # Triton's compiler reads it, and knows only constexpr
    logits_CV, row_stride, labels_C, loss_C, z_C, ignore_index, z_loss,
    VOCAB: tl.constexpr, WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = logits_CV + row * row_stride
    label = tl.load(labels_C + row)
    has_label = label != ignore_index
    # Running maximum and sum (arXiv:1805.02867): a block's columns beyond the vocabulary are -inf and add nothing.
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for first in range(0, VOCAB, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        x = tl.load(start + columns, mask=columns < VOCAB, other=float("-inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(x - new_top), 0)
        top = new_top
    lse = top + tl.log(total)
    label_logit = tl.load(start + tl.where(has_label, label, 0)).to(tl.float32)
    tl.store(loss_C + row, tl.where(has_label, lse - label_logit, 0.0))
    tl.store(z_C + row, tl.where(has_label, z_loss * lse * lse, 0.0))
    if WITH_GRADIENT:
        tl.debug_barrier()  # the label's logit is read by every thread before one of them writes over it
        scale = tl.where(has_label, 1.0 + 2.0 * z_loss * lse, 0.0)
        one = tl.where(has_label, 1.0, 0.0)
        for first in range(0, VOCAB, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = columns < VOCAB
            x = tl.load(start + columns, mask=inside, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(x - lse) * scale - tl.where(columns == label, one, 0.0)
            tl.store(start + columns, gradient.to(logits_CV.dtype.element_ty), mask=inside)


def cross_entropy_in_place(
    logits_CV: torch.Tensor,
    labels_C: torch.Tensor,
    *,
    ignore_index: int,
    z_loss: float,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the rows with a label of lse - logit[label] and of z_loss * lse^2, two float32 scalars.

    `logits_CV` (rows contiguous, float32 or narrower) then holds the gradient of both sums together; a row without
    a label holds zeros. Without `with_gradient` it is left alone. No waiting for the device, no atomic sums.
    """
    rows, vocab = logits_CV.shape
    if logits_CV.stride(1) != 1 or logits_CV.dtype == torch.float64:
        raise ValueError(
            f"logits of type {logits_CV.dtype} with strides {logits_CV.stride()}: not for this kernel"
        )
    loss_C, z_C = torch.empty(2, rows, dtype=torch.float32, device=logits_CV.device)
    _row[(rows,)](
        logits_CV, logits_CV.stride(0), labels_C, loss_C, z_C, ignore_index, z_loss,
        VOCAB=vocab, WITH_GRADIENT=with_gradient, BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)), num_warps=_WARPS,
    )  # fmt: skip
    return loss_C.sum(), z_C.sum()
