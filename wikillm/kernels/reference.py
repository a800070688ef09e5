"""Plain PyTorch references of the fused operations: slow and large; tests compare with them.

Shapes: N rows (tokens), H hidden, V vocabulary, F intermediate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def linear_cross_entropy(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    *,
    count: torch.Tensor | float = 1,
    ignore_index: int = -100,
) -> torch.Tensor:
    """(Sum of lse_n - logit_n[label_n] over the rows n with a label) / count.

    lse_n is the logsumexp of row n of hidden @ weight^T. Logits narrower than float32 are cast to
    float32, as in Hugging Face's loss. All N x V logits are kept for the backward.
    """
    logits_NV = F.linear(hidden_NH, weight_VH)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    total = F.cross_entropy(logits_NV, labels_N, ignore_index=ignore_index, reduction="sum")
    return total / count


def swiglu(
    x: torch.Tensor, gate_FH: torch.Tensor, up_FH: torch.Tensor, down_HF: torch.Tensor
) -> torch.Tensor:
    """down @ (silu(gate @ x) * (up @ x)) for x of shape (..., H) (arXiv:2002.05202)."""
    return F.linear(F.silu(F.linear(x, gate_FH)) * F.linear(x, up_FH), down_HF)
