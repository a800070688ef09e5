"""Show the n-th document or training sample of a finished store, with its position in the sources.

The content of a sample depends on seed, sequence length, packing and shards per window, as in
training.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wikillm.config.schema_types import Packing
from wikillm.core.errors import ConfigError, DataError
from wikillm.data.inspect.positions import documents_between
from wikillm.data.read.corpus import StoredCorpus
from wikillm.data.store.store import Store

_EXCERPT = 2000  # number of characters of a text that are shown


def show_document(store: Store, split: str, number: int) -> dict[str, Any]:
    """The document `number` of a split: its position, ids and text (without EOS)."""
    stream = getattr(store, split)
    if not 0 <= number < stream.n_documents:
        fix = f"choose a number from 0 to {stream.n_documents - 1}"
        raise DataError("There is no document with this number.", got=str(number), fix=fix)
    end = int(stream.document_ends()[number])
    (position,) = documents_between(store.manifest, stream, end - 1, end)
    ids = stream.read(position.first, position.end)
    return {
        "split": split,
        **asdict(position),
        "ids": ids.tolist(),
        "text": store.tokenizer().decode(ids[:-1].tolist()),
    }


def show_sample(
    store: Store,
    number: int,
    *,
    sequence_length: int,
    seed: int,
    window_shards: int,
    packing: Packing = "concat",
) -> dict[str, Any]:
    """Training sample `number`: its targets by document, in order, with their text."""
    if number < 0 or sequence_length < 1:
        raise ConfigError(
            "The number of a sample must be at least 0, and the sequence length at least 1.",
            got=f"{number}, {sequence_length}",
        )
    stream = store.train
    order = StoredCorpus(store, window_shards, packing).order(sequence_length, seed)
    tokenizer = store.tokenizer()
    parts: list[dict[str, Any]] = []
    for start, stop in order.target_ranges([number])[0]:
        # Target t is token t + 1.
        for position in documents_between(store.manifest, stream, start + 1, stop + 1):
            tokens = [max(position.first, start + 1), min(position.end, stop + 1)]
            text = tokenizer.decode(stream.read(*tokens).tolist())
            parts.append({**asdict(position), "tokens": tokens, "text": text})
    return {
        "sample": number,
        "sequence_length": sequence_length,
        "seed": seed,
        "targets": sum(part["tokens"][1] - part["tokens"][0] for part in parts),
        "parts": parts,
    }


def show_text(shown: dict[str, Any]) -> str:
    """A document or a sample as lines for the terminal; long texts are cut."""
    lines = []
    if "parts" in shown:
        lines.append(f"sample {shown['sample']}, seed {shown['seed']}: {shown['targets']} targets")
    for part in shown.get("parts", [shown]):
        start = part["first"]
        text = part["text"]
        first, end = part.get("tokens", (start, part["end"]))
        if len(text) > _EXCERPT:
            text = f"{text[:_EXCERPT]} ... ({len(text):,} characters)"
        lines += [
            "",
            f"document {part['document']:,}, its tokens {first - start} to {end - start}",
            f"{part['source']}: byte {part['offset']:,}  "
            f"({part['text_bytes']:,} bytes, {part['content_hash']})",
            text,
        ]
    return "\n".join(lines).lstrip()
