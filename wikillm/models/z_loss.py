"""PaLM's z-loss beside the cross entropy: keeps the softmax's normaliser near 1 (arXiv:2204.02311, section 5).

In training the model's loss is `cross entropy + coefficient x mean of logsumexp^2`, by the fused operation or, with the
stock loss, by a second pass over its logits. `ZLoss.latest` keeps the added part, so that a log can show the two
apart. Evaluation has none of it: its loss is the cross entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

_IGNORED = -100  # Hugging Face's ignore_index


@dataclass(slots=True)
class ZLoss:
    """`latest` is what the latest training forward added to its loss: a detached scalar on the device, no sync."""

    coefficient: float
    latest: torch.Tensor | None = None


def z_loss_term(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, count: torch.Tensor | float, coefficient: float
) -> torch.Tensor:
    """coefficient x sum of logsumexp^2 over the rows with a label / count, in float32 or wider."""
    wide = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    squares_N = torch.logsumexp(wide, -1).square()
    return coefficient * (squares_N * (labels_N != _IGNORED)).sum() / count


def add_to_stock_loss(model: PreTrainedModel, z: ZLoss) -> None:
    """Let Hugging Face's own loss function of `model` add the z-loss in training. Costs one more pass over the logits."""
    stock: Callable[..., torch.Tensor] = model.loss_function

    def with_z_loss(
        logits: torch.Tensor,
        labels: torch.Tensor | None = None,
        vocab_size: int | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        loss = stock(
            logits=logits,
            labels=labels,
            vocab_size=vocab_size,
            num_items_in_batch=num_items_in_batch,
            shift_labels=shift_labels,
            **kwargs,
        )
        if not model.training:
            return loss
        if shift_labels is None:  # position t predicts token t + 1, as in the stock function
            if labels is None:
                raise TypeError("the loss needs labels or shift_labels")
            shift_labels = nn.functional.pad(labels, (0, 1), value=_IGNORED)[..., 1:]
        labels_N = shift_labels.reshape(-1).to(logits.device)
        count = (
            num_items_in_batch if num_items_in_batch is not None else (labels_N != _IGNORED).sum()
        )
        if isinstance(count, torch.Tensor):
            count = count.to(logits.device)
        term = z_loss_term(logits.reshape(-1, logits.shape[-1]), labels_N, count, z.coefficient)
        z.latest = term.detach()
        return loss + term.to(loss.dtype)

    model.loss_function = with_z_loss
