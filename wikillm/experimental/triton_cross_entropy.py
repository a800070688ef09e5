"""Softmax, loss and the logits' gradient of a chunk in one Triton kernel, in place.

A program handles one row. It reads the row for its maximum and sum, reads the label's logit, then
reads every logit again and overwrites it with the loss's gradient. Separate operations move about
24 bytes per logit in bf16 (counted from `kernels.linear_cross_entropy`, not measured).

Importing this module needs Triton, which comes with torch's CUDA builds. Without a GPU it runs in
Triton's interpreter (TRITON_INTERPRET=1, set before the import), as in the tests.
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
    logits_CV,
    row_stride,
    labels_C,
    loss_C,
    ignore_index,
    VOCAB: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = logits_CV + row * row_stride
    label = tl.load(labels_C + row)
    has_label = label != ignore_index
    # Running maximum and sum (arXiv:1805.02867). Columns beyond the vocabulary are -inf, and so add
    # nothing to the sum.
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
    if WITH_GRADIENT:
        # All threads must have read the label's logit before any of them overwrites it.
        tl.debug_barrier()
        one = tl.where(has_label, 1.0, 0.0)
        for first in range(0, VOCAB, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = columns < VOCAB
            x = tl.load(start + columns, mask=inside, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(x - lse) * one - tl.where(columns == label, one, 0.0)
            tl.store(start + columns, gradient.to(logits_CV.dtype.element_ty), mask=inside)


def cross_entropy_in_place(
    logits_CV: torch.Tensor,
    labels_C: torch.Tensor,
    ignore_index: int,
    *,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sum of lse - logit[label] over the rows with a label, in float32, and its gradient.

    The gradient overwrites `logits_CV` (contiguous rows, float32 or narrower); rows without a label
    get zeros. Without `with_gradient` it is None, and the logits stay unchanged. There are no
    synchronisations and no atomic sums.
    """
    rows, vocab = logits_CV.shape
    if logits_CV.stride(1) != 1 or logits_CV.dtype == torch.float64:
        raise ValueError(
            "this kernel takes float32 or narrower logits in contiguous rows, "
            f"not {logits_CV.dtype} with strides {logits_CV.stride()}"
        )
    loss_C = torch.empty(rows, dtype=torch.float32, device=logits_CV.device)
    _row[(rows,)](
        logits_CV,
        logits_CV.stride(0),
        labels_C,
        loss_C,
        ignore_index,
        VOCAB=vocab,
        WITH_GRADIENT=with_gradient,
        BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)),
        num_warps=_WARPS,
    )
    return loss_C.sum(), logits_CV if with_gradient else None
