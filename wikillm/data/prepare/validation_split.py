"""Split text into training and validation by content hash; refuse a split that is too small.

A document is held out when its 64-bit content hash, divided by 2^64, is below the share. So equal
texts are always in the same split, and stay in it when data is added. The share that an error
proposes is computed from the hashes and lengths in the store's index, so it holds out enough
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wikillm.config.schema_data import DataSection
from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.sources.decompress import head
from wikillm.data.sources.fixes import plain_format, setting
from wikillm.data.store.store import TokenStream
from wikillm.data.types import SourceFile

_SMALL_CORPUS = 256 * 10**6  # bytes of source
_LOOK_BYTES = 1 << 18
_MAX_DOCUMENTS = 20_000_000  # documents whose hashes are sorted in memory: 320 MB


def automatic_fraction(source_bytes: int) -> float:
    """The share for data.val_fraction=auto: 0.1 for a small corpus, else 0.005."""
    return 0.1 if source_bytes < _SMALL_CORPUS else 0.005


def is_held_out(hashes: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which documents are held out, by their content hashes."""
    return hashes < np.uint64(int(fraction * 2**64))


def refuse_one_text(sources: Sequence[SourceFile]) -> None:
    """Raise DataError when the only source is one plain text: a document cannot be split."""
    if len(sources) != 1 or sources[0].format != "text":
        return
    text = head(sources[0], _LOOK_BYTES).decode("utf-8", errors="replace")
    best = plain_format(text, sources[0].text_key)
    formats = {
        "data.format=lines": "each line is a document",
        "data.format=blocks": "blank lines are between documents",
        "data.format=csv": "a table whose first row names its columns",
    }
    formats = {best: formats.pop(best), **formats}
    fix = "\nor ".join(f"{key} ({what})" for key, what in list(formats.items())[:2])
    raise DataError(
        "A text file is one document, "
        "and one document cannot be split into training and validation text.",
        got=f"{sources[0].path}: {format_size(sources[0].size)}",
        fix=f"{fix}\nor several files",
    )


def refuse_few_held_out(
    folder: Path, share: float, train: TokenStream, val: TokenStream, cfg: DataSection
) -> None:
    """Raise DataError if too few tokens are held out, as their loss would be mostly noise.

    Args:
        folder: folder of the store, which is not deleted.
        share: share of the documents that is held out.
        train: training split of the whole store, or of its first window.
        val: validation split of the same shards.
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
        what = f"Only {held_out:,} tokens are held out for validation, "
        what += f"less than data.min_val_tokens={cfg.min_val_tokens:,}."
        got = f"{folder}: {documents}, {held_out:,} of {held_out + train.n_tokens:,} tokens"
    got += f", with data.val_fraction={share:g}"
    raise DataError(what, got=got, fix=_fix(train, val, cfg))


def _fix(train: TokenStream, val: TokenStream, cfg: DataSection) -> str:
    fixes = ["more documents with different texts (equal texts are in the same split)"]
    if val.n_tokens and train.n_tokens >= 2:
        fixes.insert(0, f"data.min_val_tokens={val.n_tokens}")
    share = _share_for(train, val, cfg.min_val_tokens)
    settings = []
    # If nothing is held out and the wanted number is out of reach, propose to hold out one token.
    if share is None and not val.n_tokens:
        share = _share_for(train, val, 1)
        settings = ["data.min_val_tokens=1"]
    is_built_here = cfg.path or any(source.path for source in cfg.mixture)
    if share is not None and is_built_here:
        settings.insert(0, f"data.val_fraction={share}")
        if cfg.store:
            settings.append(setting("data.store", f"{cfg.store.rstrip('/')}-{share}"))
        fixes.insert(0, " ".join(settings))
    return "\nor ".join(fixes)


def _share_for(train: TokenStream, val: TokenStream, wanted: int) -> float | None:
    """A share that holds out at least `wanted` tokens; None if that is more than half of all."""
    indexes = [index for stream in (train, val) for index in stream.indexes()]
    if not indexes or train.n_documents + val.n_documents > _MAX_DOCUMENTS:
        return None
    hashes = np.concatenate([index["hash"] for index in indexes])
    lengths = [np.diff(index["end"], prepend=np.uint64(0)) for index in indexes]
    by_hash = np.argsort(hashes)
    held_out = np.cumsum(np.concatenate(lengths)[by_hash])
    last = int(np.searchsorted(held_out, wanted))
    if last >= len(hashes) or 2 * held_out[last] > held_out[-1]:
        return None
    # Round up, so that the hash of the last document is below the share.
    return math.ceil(int(hashes[by_hash[last]]) / 2**64 * 10**4 + 1e-6) / 10**4
