"""Too few held-out tokens, and what changes that: a share of documents that gives enough, by their hashes.

A document is held out when its content hash falls below the share, so which share holds out how many tokens is read from the
store's index: the one that is proposed is exact, where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wikillm.config.schema import DataSection
from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.sources.fixes import plain_format, setting
from wikillm.data.sources.streams import head
from wikillm.data.store.store import TokenStream
from wikillm.data.types import SourceFile

_LOOK_BYTES = 1 << 18
_MOST_DOCUMENTS = 20_000_000  # whose hashes are looked at: 320 MB
_BETWEEN_LINES = re.compile(r"\S[^\S\n]*\n\s*\S")


def refuse_one_text(sources: Sequence[SourceFile]) -> None:
    """Raise DataError when the only source is a plain text: one document cannot be on both sides of a split."""
    if len(sources) != 1 or sources[0].format != "text":
        return
    text = head(sources[0], _LOOK_BYTES).decode("utf-8", errors="replace")
    fix = "more documents: a line or a paragraph each (data.format=lines, data.format=blocks), or several files"
    if _BETWEEN_LINES.search(text):
        fix = f"{plain_format(text)}\n(lines: each line is a document; blocks: documents are separated by blank lines)"
    raise DataError(
        "A text file is one document, and one document cannot be split into training and validation text.",
        got=f"{sources[0].path}: {format_size(sources[0].size)}",
        fix=fix,
    )


def refuse_few_held_out(
    folder: Path, share: float, train: TokenStream, val: TokenStream, cfg: DataSection
) -> None:
    """Raise DataError for too few held-out tokens: a loss on them would be noise. The store is kept.

    Args:
        folder: of the store.
        share: of the documents that was held out.
        train: what counts: the whole store, or its first window.
        val: likewise.
    """
    held_out, total = val.n_tokens, val.n_tokens + train.n_tokens
    if train.n_tokens >= 2 and held_out >= cfg.min_val_tokens:
        return
    documents = f"{val.n_documents} of {val.n_documents + train.n_documents} documents"
    if train.n_tokens < 2:
        what = f"Nothing is left to train on: {train.n_tokens} tokens, and {held_out:,} are held out for validation."
        got = f"{folder}: {documents} are held out, with data.val_fraction={share:g}"
    else:
        what = f"Only {held_out:,} tokens are held out for validation; "
        what += f"data.min_val_tokens={cfg.min_val_tokens:,} are wanted."
        got = f"{folder}: {documents}, {held_out:,} of {total:,} tokens, with data.val_fraction={share:g}"
    raise DataError(what, got=got, fix=_fix(train, val, cfg))


def _fix(train: TokenStream, val: TokenStream, cfg: DataSection) -> str:
    held_out = val.n_tokens
    as_it_is = f"data.min_val_tokens={held_out}" if held_out and train.n_tokens >= 2 else None
    is_given = not (cfg.path or any(source.path for source in cfg.mixture))
    if is_given or train.n_documents + val.n_documents > _MOST_DOCUMENTS:
        rest = "build the store again, with a larger data.val_fraction"
        return f"{as_it_is}\nor {rest}" if as_it_is else rest
    for wanted in (cfg.min_val_tokens, 1):
        found = _share_for(train, val, wanted)
        if found is not None:
            break
    else:
        return "more documents, with texts that differ: equal texts are on one side"
    share, tokens = found
    words = [f"data.val_fraction={share!r}"]
    if tokens < cfg.min_val_tokens:
        if as_it_is is not None:
            return f"{as_it_is}\nor more data: this corpus is too small to hold out {cfg.min_val_tokens:,} tokens"
        words.append(f"data.min_val_tokens={tokens}")
    if cfg.store:
        words.append(setting("data.store", f"{cfg.store.rstrip('/')}-{share!r}"))
    return " ".join(words)


def _share_for(train: TokenStream, val: TokenStream, wanted: int) -> tuple[float, int] | None:
    """The smallest share that holds out `wanted` tokens, and how many it does; None when at most half can be.

    One token alone may also be most of a corpus: with `wanted` 1 the half is not a bound.
    """
    indexes = [index for stream in (train, val) for index in stream.indexes()]
    if not indexes:
        return None
    hashes = np.concatenate([index["hash"] for index in indexes])
    lengths = np.concatenate(
        [np.diff(index["end"], prepend=np.uint64(0)) for index in indexes]
    ).astype(np.int64)
    values, where = np.unique(hashes, return_inverse=True)
    held = np.cumsum(np.bincount(where, weights=lengths, minlength=len(values))).astype(np.int64)
    number = int(
        np.searchsorted(held, wanted)
    )  # of the group of equal texts that is the last to be held out
    if number >= len(values) - 1 or (wanted > 1 and 2 * int(held[number]) > int(held[-1])):
        return None
    low, high = int(values[number]), int(values[number + 1])
    for digits in range(2, 18):
        scale = 10**digits
        share = (low * scale // 2**64 + 1) / scale
        if low < int(share * 2**64) <= high:
            return share, int(held[number])
    return None
