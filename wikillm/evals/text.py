"""Bits per byte and perplexity of any text, by source and by script.

A document is scored as in training: after the token that starts a text, all tokens of the document
and the EOS that ends it. The start token is given, so it is not a target; EOS is a target, but has
no bytes. So the sum of the losses is -log2 of the probability of the document as a string, for any
tokenizer. Divided by the UTF-8 bytes, this sum compares models with different tokenizers.
Perplexity is per token, so it compares only models with the same tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from wikillm.data.text.script import script_of
from wikillm.data.tokenizer.tokenizer import TextTokenizer
from wikillm.evals.likelihood import TokenSequence, negative_log_likelihoods, windows

MAX_CONTEXT = 4096
"""Default number of tokens that a model reads at once, if it has more positions."""
_TOKENS_HELD = 1 << 17


@dataclass(slots=True)
class TextLoss:
    """The amount of scored text, and its negative log-likelihood."""

    documents: int = 0
    text_bytes: int = 0  # UTF-8
    tokens: int = 0  # targets: the tokens of the text, and one EOS per document
    nats: float = 0.0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / max(1, self.tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(1, self.text_bytes)

    def to_json(self) -> dict[str, float]:
        names = ("documents", "text_bytes", "tokens", "loss", "perplexity", "bits_per_byte")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class TextLosses:
    """The loss on each part of a text."""

    parts: dict[tuple[str, str], TextLoss]  # keys are (source, script)

    def of(self, source: str | None = None, script: str | None = None) -> TextLoss:
        """The loss on all parts of a source or of a script; on all parts if neither is given."""
        total = TextLoss()
        for (from_source, in_script), part in self.parts.items():
            if source in (None, from_source) and script in (None, in_script):
                total.documents += part.documents
                total.text_bytes += part.text_bytes
                total.tokens += part.tokens
                total.nats += part.nats
        return total

    def to_json(self) -> dict[str, Any]:
        sources = dict.fromkeys(source for source, _ in self.parts)
        scripts = dict.fromkeys(sorted(script for _, script in self.parts))
        return {
            **self.of().to_json(),
            "by_source": {name: self.of(source=name).to_json() for name in sources},
            "by_script": {name: self.of(script=name).to_json() for name in scripts},
        }


def start_id(tokenizer: Tokenizer, eos_id: int) -> int:
    """The id of the token before a text: the one that the tokenizer's template adds, else EOS."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    return eos_id if whole[: len(plain)] == plain else int(whole[0])


def context_limit(config: Any, wanted: int | None = None) -> int:
    """Number of tokens that a model reads at once: `wanted`, but at most its positions."""
    positions = getattr(config, "max_position_embeddings", None) or MAX_CONTEXT
    return min(int(positions), wanted or MAX_CONTEXT)


def text_losses(
    model: torch.nn.Module,
    tokenizer: TextTokenizer,
    documents: Iterable[tuple[str, str]],
    *,
    limit: int,
    batch_size: int,
    device: torch.device | str,
) -> TextLosses:
    """The loss of `model` on documents.

    Args:
        tokenizer: the model's tokenizer. Text is encoded as ordinary text, as in training.
        documents: (name of the source, text) of each document.
        limit: number of tokens that the model reads at once; longer documents are cut into
            `windows`.
        batch_size: maximum number of sequences per forward.
    """
    first = start_id(tokenizer.backend, tokenizer.eos_id)
    parts: dict[tuple[str, str], TextLoss] = {}

    def cut() -> Iterator[tuple[TextLoss, TokenSequence]]:
        for source, text in documents:
            part = parts.setdefault((source, script_of(text)), TextLoss())
            ids = [first, *tokenizer.encode(text), tokenizer.eos_id]
            part.documents += 1
            part.text_bytes += len(text.encode())
            part.tokens += len(ids) - 1
            yield from ((part, sequence) for sequence in windows(ids, limit))

    for group in _groups(cut()):
        sequences = [sequence for _, sequence in group]
        found = negative_log_likelihoods(model, sequences, batch_size=batch_size, device=device)
        for (part, _), nats in zip(group, found or (), strict=True):
            part.nats += nats
    return TextLosses(parts)


def _groups(
    items: Iterable[tuple[TextLoss, TokenSequence]],
) -> Iterator[list[tuple[TextLoss, TokenSequence]]]:
    """Groups of about `_TOKENS_HELD` tokens, so that similar lengths share a batch and memory is
    bounded."""
    group: list[tuple[TextLoss, TokenSequence]] = []
    tokens = 0
    for item in items:
        group.append(item)
        tokens += len(item[1].ids)
        if tokens >= _TOKENS_HELD:
            yield group
            group = []
            tokens = 0
    if group:
        yield group
