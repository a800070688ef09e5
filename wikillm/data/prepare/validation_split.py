"""The split into training and validation text: by content hash, and refused when it is too small.

A document is held out when its 64-bit content hash is below the share, so equal texts are always on
one side, and stay there when data is added. How many tokens a share holds out is read from the
store's index, so the share that an error proposes is exact, if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wikillm.config.schema import DataSection
from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.sources.fixes import plain_format, setting
from wikillm.data.sources.streams import head
from wikillm.data.store.store import TokenStream
from wikillm.data.types import SourceFile

_SMALL_CORPUS = 256 * 10**6  # bytes of source
_LOOK_BYTES = 1 << 18
_MOST_DOCUMENTS = 20_000_000  # whose hashes are compared: 320 MB
_BETWEEN_LINES = re.compile(r"\S[^\S\n]*\n\s*\S")


def automatic_fraction(source_bytes: int) -> float:
    """The share for data.val_fraction=auto: a tenth of a small corpus, else one in 200."""
    return 0.1 if source_bytes < _SMALL_CORPUS else 0.005


def is_held_out(hashes: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which documents are held out, by their content hashes."""
    return hashes < np.uint64(int(fraction * 2**64))


def refuse_one_text(sources: Sequence[SourceFile]) -> None:
    """Raise DataError when the only source is a plain text: one document cannot be split."""
    if len(sources) != 1 or sources[0].format != "text":
        return
    text = head(sources[0], _LOOK_BYTES).decode("utf-8", errors="replace")
    ways = "a line or a paragraph each (data.format=lines, data.format=blocks), or several files"
    fix = f"more documents: {ways}"
    if _BETWEEN_LINES.search(text):
        ways = "lines: each line is a document; blocks: documents are separated by blank lines"
        fix = f"{plain_format(text)}\n({ways})"
    raise DataError(
        "A text file is one document, "
        "and one document cannot be split into training and validation text.",
        got=f"{sources[0].path}: {format_size(sources[0].size)}",
        fix=fix,
    )


def refuse_few_held_out(
    folder: Path, share: float, train: TokenStream, val: TokenStream, cfg: DataSection
) -> None:
    """Raise DataError for too few held-out tokens, on which a loss is noise. The store is kept.

    Args:
        folder: of the store.
        share: of the documents that was held out.
        train: what counts: the whole store, or its first window.
        val: the held-out part of the same.
    """
    held_out = val.n_tokens
    if train.n_tokens >= 2 and held_out >= cfg.min_val_tokens:
        return
    documents = f"{val.n_documents} of {val.n_documents + train.n_documents} documents"
    if train.n_tokens < 2:
        what = f"Nothing is left to train on: {train.n_tokens} tokens, "
        what += f"and {held_out:,} are held out for validation."
        got = f"{folder}: {documents} are held out"
    else:
        what = f"Only {held_out:,} tokens are held out for validation; "
        what += f"data.min_val_tokens={cfg.min_val_tokens:,} are wanted."
        got = f"{folder}: {documents}, {held_out:,} of {held_out + train.n_tokens:,} tokens"
    got += f", with data.val_fraction={share:g}"
    raise DataError(what, got=got, fix=_fix(train, val, cfg))


def _fix(train: TokenStream, val: TokenStream, cfg: DataSection) -> str:
    held_out = val.n_tokens
    as_it_is = f"data.min_val_tokens={held_out}" if held_out and train.n_tokens >= 2 else None
    is_given = not (cfg.path or any(source.path for source in cfg.mixture))
    if is_given or train.n_documents + val.n_documents > _MOST_DOCUMENTS:
        rest = "build the store again, with a larger data.val_fraction"
        return f"{as_it_is}\nor {rest}" if as_it_is else rest
    # The share that gives what is wanted, or else one that gives any token at all.
    found = _share_for(train, val, cfg.min_val_tokens) or _share_for(train, val, 1)
    if found is None:
        return "more documents, with texts that differ: equal texts are on one side"
    share, tokens = found
    words = [f"data.val_fraction={share!r}"]
    if tokens < cfg.min_val_tokens:
        if as_it_is is not None:
            small = f"this corpus is too small to hold out {cfg.min_val_tokens:,} tokens"
            return f"{as_it_is}\nor more data: {small}"
        words.append(f"data.min_val_tokens={tokens}")
    if cfg.store:
        words.append(setting("data.store", f"{cfg.store.rstrip('/')}-{share!r}"))
    return " ".join(words)


def _share_for(train: TokenStream, val: TokenStream, wanted: int) -> tuple[float, int] | None:
    """The smallest share that holds out `wanted` tokens, and how many it does.

    None when that is more than half of the tokens; with `wanted` 1 it may be more.
    """
    indexes = [index for stream in (train, val) for index in stream.indexes()]
    if not indexes:
        return None
    hashes = np.concatenate([index["hash"] for index in indexes])
    lengths = [np.diff(index["end"], prepend=np.uint64(0)) for index in indexes]
    # Tokens held out by each possible share: one per group of equal texts, by ascending hash.
    values, where = np.unique(hashes, return_inverse=True)
    weights = np.concatenate(lengths).astype(np.int64)
    held = np.cumsum(np.bincount(where, weights=weights, minlength=len(values))).astype(np.int64)
    last = int(np.searchsorted(held, wanted))
    if last >= len(values) - 1 or (wanted > 1 and 2 * int(held[last]) > int(held[-1])):
        return None
    # The shortest decimal between the last group that is held out and the next one.
    low = int(values[last])
    high = int(values[last + 1])
    for digits in range(2, 18):
        scale = 10**digits
        share = (low * scale // 2**64 + 1) / scale
        if low < int(share * 2**64) <= high:
            return share, int(held[last])
    return None
