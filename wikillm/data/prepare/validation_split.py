"""The split into training and validation text: by content hash, and refused when it is too small.

A document is held out when its 64-bit content hash is below the share, so equal texts are always on
one side, and stay there when data is added. How many tokens a share holds out is read from the
store's index, so the share that an error proposes suffices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wikillm.config.schema import DataSection
from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.sources.fixes import setting
from wikillm.data.store.store import TokenStream
from wikillm.data.types import SourceFile

_SMALL_CORPUS = 256 * 10**6  # bytes of source
_MOST_DOCUMENTS = 20_000_000  # whose hashes are compared: 320 MB


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
    raise DataError(
        "A text file is one document, "
        "and one document cannot be split into training and validation text.",
        got=f"{sources[0].path}: {format_size(sources[0].size)}",
        fix="data.format=lines (each line is a document), "
        "or data.format=blocks (blank lines are between documents), or several files",
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
    ways = ["more documents, with texts that differ: equal texts are on one side"]
    if val.n_tokens and train.n_tokens >= 2:
        ways.insert(0, f"data.min_val_tokens={val.n_tokens}")
    share = _share_for(train, val, cfg.min_val_tokens)
    words = []
    if share is None and not val.n_tokens:  # any held-out token is better than none
        share = _share_for(train, val, 1)
        words = ["data.min_val_tokens=1"]
    is_built_here = cfg.path or any(source.path for source in cfg.mixture)
    if share is not None and is_built_here:
        words.insert(0, f"data.val_fraction={share}")
        if cfg.store:
            words.append(setting("data.store", f"{cfg.store.rstrip('/')}-{share}"))
        ways.insert(0, " ".join(words))
    return "\nor ".join(ways)


def _share_for(train: TokenStream, val: TokenStream, wanted: int) -> float | None:
    """A share that holds out `wanted` tokens; None when that is more than half of all."""
    indexes = [index for stream in (train, val) for index in stream.indexes()]
    if not indexes or train.n_documents + val.n_documents > _MOST_DOCUMENTS:
        return None
    hashes = np.concatenate([index["hash"] for index in indexes])
    lengths = [np.diff(index["end"], prepend=np.uint64(0)) for index in indexes]
    by_hash = np.argsort(hashes)
    held_out = np.cumsum(np.concatenate(lengths)[by_hash])
    last = int(np.searchsorted(held_out, wanted))
    if last >= len(hashes) or 2 * held_out[last] > held_out[-1]:
        return None
    # Rounded up, so that the last of these documents is below it.
    return math.ceil(int(hashes[by_hash[last]]) / 2**64 * 10**4 + 1e-6) / 10**4
