"""What a tokenizer makes of a store's text: bytes per token, hanzi that are one token, tokens that never occur.

Measured on the first `SAMPLE_BYTES` of the validation split (which a tokenizer trained on the corpus may have read), and
for unused tokens on the first `COUNTED_TOKENS` of the training split. The facts of a trained tokenizer are kept in
`STORE/tokenizer_report.json`; they depend on the store alone. The comparison with Qwen2's tokenizer is made where that
is found on this machine, and is only shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wikillm.core.files import write_json
from wikillm.core.log import say
from wikillm.data.store.manifest import ShardInfo
from wikillm.data.store.store import SPLITS, Store, TokenStream
from wikillm.data.tokenizer.find import qwen2_here
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer

REPORT_NAME = "tokenizer_report.json"
SAMPLE_BYTES = 1 << 20
COUNTED_TOKENS = 1 << 26
_BATCH_TOKENS = 1 << 16
_HANZI = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
"""CJK ideographs with extensions A to H and the compatibility block, by code point."""


def measure(tokenizer: TextTokenizer, train: TokenStream, val: TokenStream) -> dict[str, Any]:
    """The facts of a store's own tokenizer, for programs."""
    texts = _sample(tokenizer, val if val.n_tokens else train)
    return {
        "vocabulary": tokenizer.length,
        "sample": "val" if val.n_tokens else "train",
        **_on(tokenizer, texts),
        **_unused(tokenizer, train),
    }


def report_on_trained(folder: Path, tokenizer: TextTokenizer, shards: Sequence[ShardInfo]) -> None:
    """What a trained tokenizer makes of the text: kept in the store at `folder`, and said."""
    train, val = (TokenStream(folder, split, shards) for split in SPLITS)
    facts = measure(tokenizer, train, val)
    write_json(folder / REPORT_NAME, facts)
    say("tokenizer: " + report_text(compared(facts, tokenizer, train, val)))


def report_of_store(store: Store) -> dict[str, Any]:
    """As `measure`, with Qwen2's tokenizer on the same text where it is here (and not the store's own)."""
    tokenizer = store.tokenizer()
    return compared(measure(tokenizer, store.train, store.val), tokenizer, store.train, store.val)


def compared(
    facts: dict[str, Any], tokenizer: TextTokenizer, train: TokenStream, val: TokenStream
) -> dict[str, Any]:
    """Facts that were measured, and Qwen2's beside them."""
    return {**facts, "qwen2": _qwen2(tokenizer, train, val)}


def report_text(found: dict[str, Any]) -> str:
    """The same as lines for the terminal."""
    lines = [f"on {found['text_bytes']:,} bytes of the {found['sample']} split"]
    rows = [("this tokenizer", found)] + (
        [("Qwen2's", found["qwen2"])] if found.get("qwen2") else []
    )
    for name, one in rows:
        lines.append(
            f"{name:<15} {one['vocabulary']:>8,} tokens  {one['bytes_per_token']:.3f} bytes/token  "
            f"{one['hanzi_one_token']:,} of {one['hanzi']:,} distinct hanzi are one token "
            f"({one['hanzi_share']:.1%}; {one['hanzi_share_of_text']:.1%} of those in the text)"
        )
    lines.append(
        f"{found['unused']:,} of {found['vocabulary']:,} tokens never occur in {found['counted_tokens']:,} tokens of training"
        + (
            f", such as {'  '.join(map(repr, found['unused_examples']))}"
            if found["unused_examples"]
            else ""
        )
    )
    return "\n".join(lines)


def _qwen2(own: TextTokenizer, train: TokenStream, val: TokenStream) -> dict[str, Any] | None:
    folder: Path | None = qwen2_here()
    if folder is None:
        return None
    other = load_tokenizer(folder)
    if other.sha256 == own.sha256:
        return None
    return {"vocabulary": other.length, **_on(other, _sample(own, val if val.n_tokens else train))}


def _sample(tokenizer: TextTokenizer, stream: TokenStream) -> list[str]:
    """Texts of the first documents, up to SAMPLE_BYTES in all."""
    texts: list[str] = []
    size = at = 0
    while at < stream.n_tokens and size < SAMPLE_BYTES:
        stop = min(at + _BATCH_TOKENS, stream.n_tokens)
        ends = stream.document_ends(at, stop).tolist()
        if not ends:  # a document longer than a batch
            ends = stream.document_ends(at, stream.n_tokens).tolist()[:1]
        batch = [stream.read(a, b - 1).tolist() for a, b in zip([at, *ends], ends, strict=False)]
        for text in tokenizer.backend.decode_batch(batch, skip_special_tokens=False):
            if size < SAMPLE_BYTES:
                texts.append(text)
                size += len(text.encode())
        at = ends[-1]
    return texts


def _on(tokenizer: TextTokenizer, texts: list[str]) -> dict[str, Any]:
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    size = sum(len(text.encode()) for text in texts)
    counts: dict[str, int] = {}
    for text in texts:
        for letter in text:
            counts[letter] = counts.get(letter, 0) + 1
    hanzi = sorted(
        letter for letter in counts if any(low <= ord(letter) <= high for low, high in _HANZI)
    )
    single = [
        letter
        for letter, ids in zip(hanzi, tokenizer.encode_batch(hanzi), strict=True)
        if len(ids) == 1
    ]
    occurrences = sum(counts[letter] for letter in hanzi)
    return {
        "text_bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / max(1, tokens),
        "hanzi": len(hanzi),
        "hanzi_one_token": len(single),
        "hanzi_share": len(single) / max(1, len(hanzi)),
        "hanzi_share_of_text": sum(counts[letter] for letter in single) / max(1, occurrences),
    }


def _unused(tokenizer: TextTokenizer, train: TokenStream) -> dict[str, Any]:
    """Tokens that do not occur. Special tokens other than EOS never do, and count: they are rows of the embedding."""
    counted = min(COUNTED_TOKENS, train.n_tokens)
    is_used = np.zeros(tokenizer.length, dtype=bool)
    for start in range(0, counted, 1 << 22):
        is_used[train.read(start, min(start + (1 << 22), counted))] = True
    unused = np.flatnonzero(~is_used).tolist()
    return {
        "counted_tokens": counted,
        "unused": len(unused),
        "unused_examples": [tokenizer.decode([i]) for i in unused[:: max(1, len(unused) // 8)][:8]],
    }
