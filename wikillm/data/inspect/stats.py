"""Statistics of a finished store: documents, their lengths, and duplicates, as text and as JSON.

Index entries are mapped, so memory use is 8 bytes per document.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import DataError
from wikillm.data.inspect.summary import store_summary_json
from wikillm.data.store.manifest import MANIFEST_NAME
from wikillm.data.store.store import SPLITS, Store, TokenStream

_BAR = 40  # characters of the longest bar of a histogram


def document_lengths(stream: TokenStream) -> npt.NDArray[np.int64]:
    """Number of tokens of each document, EOS included."""
    return np.diff(stream.document_ends(), prepend=0)


def unigram_cross_entropy(counts: npt.NDArray[np.integer[Any]]) -> float:
    """Nats per token of the best unigram model of a text: the entropy of its token frequencies.

    No model that ignores context has a lower loss on this text. `counts`: occurrences of each id.
    """
    present = counts[counts > 0].astype(np.float64)
    share = present / present.sum()
    return float(-(share * np.log(share)).sum())


def stats_of(store: Store) -> dict[str, Any]:
    """Counts, document lengths, duplicates and the funnel of a store, as JSON."""
    splits = {name: _split_stats(getattr(store, name)) for name in SPLITS}
    found = store_summary_json(store.dir, store.manifest)
    return {**found, "backend": store.manifest.backend, "splits": splits}


def _split_stats(stream: TokenStream) -> dict[str, Any]:
    lengths = document_lengths(stream)
    if not len(lengths):
        return {"documents": 0, "tokens": 0, "text_bytes": 0}
    bins = np.bincount(np.floor(np.log2(lengths)).astype(np.int64))
    return {
        "documents": stream.n_documents,
        "tokens": stream.n_tokens,
        "text_bytes": stream.text_bytes,
        "bytes_per_token": stream.text_bytes / stream.n_tokens,
        "length": {
            "least": int(lengths.min()),
            "median": float(np.percentile(lengths, 50)),
            "mean": float(lengths.mean()),
            "p99": float(np.percentile(lengths, 99)),
            "most": int(lengths.max()),
        },
        "histogram": [
            {"from": 2**i, "below": 2 ** (i + 1), "documents": int(n)}
            for i, n in enumerate(bins)
            if bins[: i + 1].any()
        ],
    }


def stats_text(store: Store) -> str:
    """The statistics of `stats_of` as lines for the terminal."""
    found = stats_of(store)
    copies = found["duplicates"]
    counted = "not counted" if copies is None else f"{copies:,} documents are copies of others"
    lines = [
        f"store      {store.dir}  "
        f"(fingerprint {store.manifest.fingerprint[:12]}, {found['shards']} shards)",
        f"encoder    {found['backend']['name']} {found['backend']['version']}",
        f"copies     {counted}",
    ]
    for name, split in found["splits"].items():
        line = f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens"
        if not split["documents"]:
            lines += ["", line]
            continue
        line += f", {split['text_bytes'] / 1e6:.2f} MB of text"
        line += f", {split['bytes_per_token']:.2f} bytes/token"
        lines += ["", line, f"tokens per document: {length_line(split['length'])}"]
        lines += _bars(split["histogram"])
    return "\n".join([*lines, "", store.manifest.funnel.table()])


def length_line(length: dict[str, Any]) -> str:
    """A line such as `least 5, median 120, mean 310, 99 % below 2,000, most 80,000`."""
    return (
        f"least {length['least']:,}, median {length['median']:,.0f}, mean {length['mean']:,.0f}, "
        f"99 % below {length['p99']:,.0f}, most {length['most']:,}"
    )


def _bars(histogram: list[dict[str, int]]) -> Iterator[str]:
    highest = max(bin["documents"] for bin in histogram)
    for bin in histogram:
        bar = "#" * -(-bin["documents"] * _BAR // highest)
        yield f"{bin['from']:>9,} - {bin['below'] - 1:>9,}  {bin['documents']:>10,}  {bar}".rstrip()


def find_store(named: str | None) -> Path:
    """The folder `named`, or the most recent finished store in `stores/`.

    Raises DataError if `named` is None and `stores/` has no finished store.
    """
    if named is not None:
        return Path(named)
    found = sorted(Path("stores").glob(f"*/{MANIFEST_NAME}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError(
            "There is no token store in stores/.",
            got=str(Path.cwd()),
            fix="run `wikillm prepare`, or name the folder of a store",
        )
    return found[-1].parent
