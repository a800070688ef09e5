"""Which documents are copies: exact by their 64-bit content hash, near by MinHash and locality-sensitive hashing.

Documents are taken in the order of the sources, and one is dropped when it is like an earlier one that is kept. So nothing
is dropped for being like a dropped document (no chains), and what is decided for a document depends on those before it
only. Candidates are documents that agree in all 8 minima of one of 16 bands; a candidate is dropped when the share of equal minima among
all 128 reaches the wanted similarity (standard deviation of that estimate: sqrt(s(1-s)/128), 0.035 at 0.8). A pair of
similarity s becomes a candidate with probability 1 - (1 - s^8)^16: 0.95 at 0.8, 0.99 at 0.85, 0.9999 at 0.9. Two
documents of similarity 0.6 are taken for 0.8 with a probability below 1e-5.

Own code for the search, since the libraries' indexes hold every signature in Python objects or in memory: here
the signatures stay on the disk, and memory is, by count of the arrays, about 90 bytes per document (90 MB per million), and up to 200
more for documents that share bands with others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.data.dedup.minhash import MINIMA, SIGNED, SignedShard, signed_path
from wikillm.data.filters.characters import mix
from wikillm.data.filters.drop_list import DROP, EXACT

BANDS, ROWS = 16, 8
MAX_COMPARED = (
    64  # kept documents of one band that a document is compared with, the nearest before it first
)
_AT_A_TIME = 1 << 16  # signatures read at a time


def find_copies(
    folder: Path, shards: Sequence[SignedShard], similarity: float | None
) -> npt.NDArray[Any]:
    """The drop-list of these shards, sorted by place. `similarity` None: exact copies only."""
    documents = np.concatenate(
        [np.empty(0, dtype=SIGNED)]
        + [np.fromfile(signed_path(folder, shard.number, "doc"), dtype=SIGNED) for shard in shards]
    )
    _, first, group = np.unique(documents["hash"], return_index=True, return_inverse=True)
    kept_by = first[
        group
    ]  # the first document of the same content; itself where there is none before
    percent = np.full(len(documents), EXACT, dtype=np.uint32)
    if similarity is not None:
        near = _Near(
            folder, shards, np.flatnonzero(kept_by == np.arange(len(documents))), similarity
        )
        for document, kept, share in near.copies():
            kept_by[document] = kept
            percent[document] = round(100 * share)
        # Exact copies of a document that is a near copy of a third: near copies of that one, as like it as the first.
        is_moved = kept_by != kept_by[kept_by]
        percent[is_moved] = percent[kept_by[is_moved]]
        kept_by = kept_by[kept_by]
    dropped = np.flatnonzero(kept_by != np.arange(len(documents)))
    drops = np.zeros(len(dropped), dtype=DROP)
    for name in ("source", "offset", "characters", "text_bytes"):
        drops[name] = documents[name][dropped]
    for name in ("source", "offset"):
        drops[f"kept_{name}"] = documents[name][kept_by[dropped]]
    drops["percent"] = percent[dropped]
    return drops


@dataclass(slots=True)
class _Near:
    """Near copies among the documents `which` (numbers in the order of the sources, ascending)."""

    folder: Path
    shards: Sequence[SignedShard]
    which: npt.NDArray[np.int64]
    similarity: float

    def copies(self) -> Iterator[tuple[int, int, float]]:
        """(document, the kept document it is a copy of, estimated similarity), in order."""
        signatures = _Signatures(self.folder, self.shards)
        members, before = self._bands(signatures)
        numbers = self.which[members]
        is_dropped = bytearray(len(members))
        for at in range(len(members)):
            candidates = _kept_before(at, before, is_dropped)
            if not candidates:
                continue
            own = signatures.row(int(numbers[at]))
            shares = [
                float(np.mean(own == signatures.row(int(numbers[other])))) for other in candidates
            ]
            best = max(range(len(candidates)), key=lambda i: (shares[i], -candidates[i]))
            if shares[best] >= self.similarity:
                is_dropped[at] = 1
                yield int(numbers[at]), int(numbers[candidates[best]]), shares[best]

    def _bands(
        self, signatures: _Signatures
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Documents that share a band with another, and per band the member before each in it, or -1."""
        pairs: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        is_member = np.zeros(len(self.which), dtype=bool)
        for band in range(BANDS):
            keys = signatures.band_keys(band)[self.which]
            order = np.argsort(keys, kind="stable").astype(np.int32)
            same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
            pairs.append((order[same + 1], order[same]))
            is_member[pairs[-1][0]] = is_member[pairs[-1][1]] = True
        members = np.flatnonzero(is_member)
        rank = np.cumsum(is_member, dtype=np.int32) - np.int32(1)
        before = np.full((BANDS, len(members)), -1, dtype=np.int32)
        for band, (later, earlier) in enumerate(pairs):
            before[band, rank[later]] = rank[earlier]
        return members, before


def _kept_before(at: int, before: npt.NDArray[np.int32], is_dropped: bytearray) -> list[int]:
    """The kept members that share a band with `at`. Shortens the chains past dropped ones, so each is walked once."""
    found: set[int] = set()
    for chain in before:
        here, compared = int(chain[at]), 0
        if here >= 0 and is_dropped[here]:
            here = int(chain[here])  # its own chain was shortened when it was looked at
            chain[at] = here
        while here >= 0 and compared < MAX_COMPARED:
            found.add(here)
            compared += 1
            here = int(chain[here])
    return sorted(found)


class _Signatures:
    """The minima of all shards, on the disk."""

    def __init__(self, folder: Path, shards: Sequence[SignedShard]) -> None:
        filled = [shard for shard in shards if shard.documents]
        self._starts = np.cumsum([0, *(shard.documents for shard in filled)])
        self._maps = [
            np.memmap(
                signed_path(folder, shard.number, "min"),
                dtype="<u4",
                mode="r",
                shape=(shard.documents, MINIMA),
            )
            for shard in filled
        ]

    def row(self, document: int) -> npt.NDArray[np.uint32]:
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        return self._maps[shard][document - self._starts[shard]]

    def band_keys(self, band: int) -> npt.NDArray[np.uint64]:
        """A 64-bit hash per document of its minima in one band."""
        keys = np.empty(int(self._starts[-1]), dtype=np.uint64)
        for start, rows in zip(self._starts, self._maps, strict=False):
            for at in range(0, len(rows), _AT_A_TIME):
                part = rows[at : at + _AT_A_TIME, band * ROWS : (band + 1) * ROWS]
                key = np.zeros(len(part), dtype=np.uint64)
                for column in range(ROWS):
                    key = mix(key ^ part[:, column].astype(np.uint64)) + np.uint64(column + 1)
                keys[start + at : start + at + len(part)] = key
        return keys
