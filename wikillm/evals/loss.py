"""Held-out loss over all ranks: the sum of the losses of all targets over their number, in float64.

Unlike a mean of batch means, this value does not depend on the batch size. Bits per byte (the total
loss in bits over the UTF-8 bytes of the text) does not depend on the tokenizer either, so runs with
different tokenizers can be compared. EOS tokens count as targets, but have no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from wikillm.data.read.loader import to_device

Sum = Callable[..., tuple[float, ...]]  # adds numbers up over all ranks


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """`loss` is in nats per target; `bits_per_byte` divides by the bytes of the targets' text."""

    loss: float
    bits_per_byte: float
    targets: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def to_json(self) -> dict[str, float]:
        return asdict(self) | {"perplexity": self.perplexity}


def combined(parts: Iterable[HeldOutLoss]) -> HeldOutLoss:
    """The exact loss over the texts of all parts together. At least one part must have targets."""
    parts = [part for part in parts if part.targets]
    targets = sum(part.targets for part in parts)
    total = math.fsum(part.loss * part.targets for part in parts)  # nats
    bits = total / math.log(2)
    size = math.fsum(  # bytes
        part.loss * part.targets / (part.bits_per_byte * math.log(2)) for part in parts
    )
    return HeldOutLoss(total / targets, bits / size, targets)


def weights_of(parts: Mapping[str, HeldOutLoss]) -> str:
    """The weights that `combined` gives to the sources of a mixture, as text."""
    total = max(1, sum(part.targets for part in parts.values()))
    shares = ", ".join(f"{name} {part.targets / total:.1%}" for name, part in parts.items())
    return f"weighted by held-out tokens ({shares}), not by data.mixture"


@torch.no_grad()
def held_out_loss(
    model: torch.nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    bytes_per_token: float,
    device: torch.device | str,
    sum_over_ranks: Sum = lambda *values: values,
    should_stop: Callable[[], bool] = lambda: False,
) -> HeldOutLoss | None:
    """The loss of `model` on `batches`; None when `should_stop` returned True. (all ranks)

    Args:
        model: a causal language model of HF, wrapped by DeepSpeed or not; its mode is restored.
        bytes_per_token: UTF-8 bytes of the held-out text per token of its stream.
        sum_over_ranks: adds up its arguments over all ranks.
        should_stop: called before every batch; must return the same on every rank.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    targets = 0
    try:
        for batch in batches:
            if should_stop():
                return None
            total += batch_loss_sum(model, to_device(batch, device))
            targets += int((batch["shift_labels"] != -100).sum())
    finally:
        model.train(was_training)
    loss_sum, target_sum = sum_over_ranks(float(total), float(targets))
    mean = loss_sum / max(target_sum, 1.0)
    return HeldOutLoss(mean, mean / math.log(2) / bytes_per_token, int(target_sum))


def batch_loss_sum(model: torch.nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Sum of the cross entropies (nats) of a batch's targets, in float64, without ignored labels.

    A batch of padding runs its forward too, because the other ranks wait for it under ZeRO-3. The
    fused loss materializes no logits here either.
    """
    # HF divides the sum by num_items_in_batch, so 1 gives the sum.
    outputs = model(**batch, num_items_in_batch=1, use_cache=False)
    loss: torch.Tensor = outputs.loss
    return loss.double()
