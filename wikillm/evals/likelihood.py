"""The probability that a model gives to tokens, for any batch size and number of ranks.

Sequences are padded on the right. Attention is causal, so padding changes no earlier position, and
no attention mask is needed. Losses are computed in float32 and summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

_MAX_TOKENS = 8192
"""Maximum tokens of a batch, whose logits are kept at once; a single sequence may be longer."""
_ROWS = 1024
"""Number of positions whose logits are converted to float32 at a time."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids. The ids from index `first` on are scored, each given all ids before it."""

    ids: list[int]
    first: int


def windows(ids: Sequence[int], limit: int) -> Iterator[TokenSequence]:
    """Cut a document into sequences for a model that reads `limit` tokens at once.

    Every token is scored once, except the first, which starts the document. The windows overlap:
    after the first window, each scored token has at least `limit - limit // 2` tokens before it.
    """
    end = min(len(ids), limit + 1)
    yield TokenSequence(list(ids[:end]), 1)
    while end < len(ids):
        scored = end
        end = min(len(ids), end + max(1, limit // 2))
        begin = end - (limit + 1)
        yield TokenSequence(list(ids[begin:end]), scored - begin)


@torch.no_grad()
def negative_log_likelihoods(
    model: torch.nn.Module,
    sequences: Sequence[TokenSequence],
    *,
    batch_size: int,
    device: torch.device | str,
    forwards: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[float] | None:
    """Sum of the nats of the scored tokens of each sequence; None if `should_stop` returned True.

    Args:
        model: a causal language model of HF, wrapped by DeepSpeed or not; its mode is restored.
        batch_size: maximum number of sequences per forward.
        forwards: minimum number of forwards; extra forwards read one token. Under ZeRO-3 all
            ranks must run the same number of forwards, which `batches_of` gives.
        should_stop: called before every batch; must return the same on every rank.
    """
    found = [0.0] * len(sequences)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        batches = batches_of([len(sequence.ids) for sequence in sequences], batch_size)
        for batch in batches:
            if should_stop():
                return None
            chosen = [sequences[number] for number in batch]
            for number, nats in zip(batch, _batch_nats(model, chosen, device), strict=True):
                found[number] = nats
        for _ in range(forwards - len(batches)):
            if should_stop():
                return None
            _batch_nats(model, [TokenSequence([0, 0], 1)], device)
    finally:
        for module in training:
            module.training = True
    return found


def batches_of(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group sequence numbers into batches of similar lengths, the longest first."""
    batches: list[list[int]] = []
    room = 0
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if not batches or len(batches[-1]) == room:
            room = max(1, min(batch_size, _MAX_TOKENS // max(1, lengths[number])))
            batches.append([])
        batches[-1].append(number)
    return batches


def _batch_nats(
    model: torch.nn.Module, sequences: Sequence[TokenSequence], device: torch.device | str
) -> list[float]:
    """Sum of the nats of the scored tokens of each sequence, from one forward."""
    longest = max(len(sequence.ids) for sequence in sequences) - 1
    # Position t predicts token t + 1: the last token is only a target.
    ids_BT = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids_BT[row, : len(sequence.ids) - 1] = torch.tensor(sequence.ids[:-1])
    # Compute only the logits from the first scored token on: contexts are long, answers short.
    begin = min(sequence.first for sequence in sequences) - 1
    outputs = model(input_ids=ids_BT.to(device), logits_to_keep=longest - begin, use_cache=False)
    found = []
    for row, sequence in enumerate(sequences):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(sequence.first, len(sequence.ids), _ROWS):
            stop = min(start + _ROWS, len(sequence.ids))
            logits_TV = outputs.logits[row, start - 1 - begin : stop - 1 - begin].float()
            targets_T = torch.tensor(sequence.ids[start:stop], device=device)
            total += (
                torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="none")
                .double()
                .sum()
            )
        found.append(float(total))
    return found
