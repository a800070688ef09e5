"""PaLM's z-loss, which keeps the softmax's normaliser near 1 (arXiv:2204.02311, section 5).

In training the model's loss is `cross entropy + coefficient x mean of logsumexp^2`, by the fused
operation or, with the stock loss, by a second pass over its logits. `ZLoss.latest` keeps the added
part, so that a log can show the two apart. An evaluation's loss is the cross entropy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

IGNORED = -100  # Hugging Face's ignore_index


@dataclass(slots=True)
class ZLoss:
    """`latest`: what the last training forward added to its loss, detached, on its device."""

    coefficient: float
    latest: torch.Tensor | None = None


def add_to_stock_loss(model: PreTrainedModel, z: ZLoss) -> None:
    """Let Hugging Face's own loss add the z-loss in training: one more pass over the logits."""
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
            shift_labels = nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        labels_N = shift_labels.reshape(-1).to(logits.device)
        count = num_items_in_batch
        if count is None:
            count = (labels_N != IGNORED).sum()
        if isinstance(count, torch.Tensor):
            count = count.to(logits.device)
        wide = logits.reshape(-1, logits.shape[-1])
        wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
        squares_N = torch.logsumexp(wide, -1).square()
        term = z.coefficient * (squares_N * (labels_N != IGNORED)).sum() / count
        z.latest = term.detach()
        return loss + term.to(loss.dtype)

    model.loss_function = with_z_loss
