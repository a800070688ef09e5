"""Report how a tokenizer fits a store's text: bytes per token, hanzi as one token, unused tokens.

The sample is the first `SAMPLE_BYTES` of the validation split, which a tokenizer trained on the
corpus may have read. Unused tokens are counted in the first `COUNTED_TOKENS` of the training split.
The figures of a trained tokenizer are in `STORE/tokenizer_report.json` and depend on the store
alone. The comparison with Qwen2's tokenizer, if it is on this machine, is shown but not stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wikillm.core.files import write_json
from wikillm.core.log import say
from wikillm.data.filters.characters import codes_of, count_han
from wikillm.data.store.manifest import ShardInfo
from wikillm.data.store.store import SPLITS, Store, TokenStream
from wikillm.data.tokenizer.find import qwen2_here
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer

REPORT_NAME = "tokenizer_report.json"
SAMPLE_BYTES = 1 << 20
COUNTED_TOKENS = 1 << 26
_BATCH_TOKENS = 1 << 16


def report_on_trained(folder: Path, tokenizer: TextTokenizer, shards: Sequence[ShardInfo]) -> None:
    """Measure a trained tokenizer; write the figures into the store at `folder`, and log them."""
    train, val = (TokenStream(folder, split, shards) for split in SPLITS)
    report = _report(tokenizer, train, val)
    facts = {name: fact for name, fact in report.items() if name != "qwen2"}
    write_json(folder / REPORT_NAME, facts)
    say("tokenizer: " + report_text(report))


def report_of_store(store: Store) -> dict[str, Any]:
    """The figures of a store's tokenizer, and under "qwen2" those of Qwen2's tokenizer or None."""
    return _report(store.tokenizer(), store.train, store.val)


def _report(tokenizer: TextTokenizer, train: TokenStream, val: TokenStream) -> dict[str, Any]:
    texts = _sample(tokenizer, val if val.n_tokens else train)
    folder = qwen2_here()
    reference = None if folder is None else load_tokenizer(folder)
    qwen2 = None
    if reference is not None and reference.sha256 != tokenizer.sha256:
        qwen2 = {"vocabulary": reference.length, **_measure(reference, texts)}
    return {
        "vocabulary": tokenizer.length,
        "sample": "val" if val.n_tokens else "train",
        **_measure(tokenizer, texts),
        **_unused(tokenizer, train),
        "qwen2": qwen2,
    }


def report_text(report: dict[str, Any]) -> str:
    """The figures as lines for the terminal."""
    lines = [f"on {report['text_bytes']:,} bytes of the {report['sample']} split"]
    for name, row in (("this tokenizer", report), ("Qwen2's", report["qwen2"])):
        if row:
            hanzi = f"{row['hanzi_one_token']:,} of {row['hanzi']:,} distinct hanzi are one token"
            shares = f"{row['hanzi_share']:.1%}; {row['hanzi_share_of_text']:.1%}"
            size = f"{row['vocabulary']:>8,} tokens  {row['bytes_per_token']:.3f} bytes/token"
            lines.append(f"{name:<15} {size}  {hanzi} ({shares} of those in the text)")
    unused = f"{report['unused']:,} of {report['vocabulary']:,} tokens never occur"
    unused += f" in {report['counted_tokens']:,} tokens of training"
    if report["unused_examples"]:
        unused += f", such as {'  '.join(map(repr, report['unused_examples']))}"
    return "\n".join([*lines, unused])


def _sample(tokenizer: TextTokenizer, stream: TokenStream) -> list[str]:
    """Texts of the first documents, about SAMPLE_BYTES in all."""
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


def _measure(tokenizer: TextTokenizer, texts: list[str]) -> dict[str, Any]:
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    size = sum(len(text.encode()) for text in texts)
    letters = Counter(letter for text in texts for letter in text)
    hanzi = sorted(letter for letter in letters if count_han(codes_of(letter)))
    encoded = zip(hanzi, tokenizer.encode_batch(hanzi), strict=True)
    single = [letter for letter, ids in encoded if len(ids) == 1]
    occurrences = sum(letters[letter] for letter in hanzi)
    return {
        "text_bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / max(1, tokens),
        "hanzi": len(hanzi),
        "hanzi_one_token": len(single),
        "hanzi_share": len(single) / max(1, len(hanzi)),
        "hanzi_share_of_text": sum(letters[letter] for letter in single) / max(1, occurrences),
    }


def _unused(tokenizer: TextTokenizer, train: TokenStream) -> dict[str, Any]:
    """Count tokens that do not occur, with examples.

    Unused special tokens count too, because they are rows of the embedding.
    """
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
