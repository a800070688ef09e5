"""Find exact duplicates by content hash, and near duplicates by MinHash with LSH.

Documents come in the order of the sources. A document is dropped when it is similar to an earlier,
kept document. Similarity to a dropped document does not count, and a decision depends on earlier
documents only. Two documents are compared if all 8 minima of one of their 16 bands are equal. The
later document is dropped when the share of equal minima among all 128 reaches the wanted similarity
(the standard deviation of that estimate is sqrt(s(1-s)/128), 0.035 at 0.8). A pair of similarity s
is compared with probability 1 - (1 - s^8)^16: 0.95 at 0.8, 0.99 at 0.85, 0.9999 at 0.9. A document
of similarity 0.6 is dropped for a limit of 0.8 with a probability below 1e-5.

The search is written here, since the indexes of the libraries keep every signature in memory; here
the signatures stay on the disk. By the sizes of the arrays, the search takes about 90 bytes of
memory per document, and up to 200 more for each document that shares a band with another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.data.dedup.minhash import DOCUMENT, MINIMA, MinHashShard, minhash_path
from wikillm.data.filters.characters import mix
from wikillm.data.filters.drop_list import DROP, EXACT

BANDS = 16
ROWS = 8
MAX_COMPARED = 64
"""Number of kept documents per band that a document is compared with, nearest first."""
_READ_ROWS = 1 << 16  # signatures read at a time


def find_duplicates(
    folder: Path, shards: Sequence[MinHashShard], similarity: float | None
) -> npt.NDArray[Any]:
    """The drop-list (dtype `DROP`) of these shards, sorted by source and offset.

    With `similarity` None only exact duplicates are found.
    """
    paths = [minhash_path(folder, shard.number, "doc") for shard in shards]
    parts = [np.fromfile(path, dtype=DOCUMENT) for path in paths]
    documents = np.concatenate([np.empty(0, dtype=DOCUMENT), *parts])
    # The first document with the same content, which may be the document itself.
    _, first, group = np.unique(documents["hash"], return_index=True, return_inverse=True)
    kept_by = first[group]
    percent = np.full(len(documents), EXACT, dtype=np.uint32)
    if similarity is not None:
        distinct = np.flatnonzero(kept_by == np.arange(len(documents)))
        near = _NearDuplicates(folder, shards, distinct, similarity)
        for document, kept, share in near.found():
            kept_by[document] = kept
            percent[document] = round(100 * share)
        # An exact duplicate of a dropped document is a near duplicate of the kept document.
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
class _NearDuplicates:
    """Finds near duplicates among the documents with the numbers `which` (ascending)."""

    folder: Path
    shards: Sequence[MinHashShard]
    which: npt.NDArray[np.int64]
    similarity: float

    def found(self) -> Iterator[tuple[int, int, float]]:
        """(document, kept document that it resembles, estimated similarity), in order."""
        signatures = _Signatures(self.folder, self.shards)
        members, before = self._bands(signatures)
        numbers = self.which[members]
        is_dropped = bytearray(len(members))
        for at in range(len(members)):
            candidates = _kept_candidates(at, before, is_dropped)
            if not candidates:
                continue
            own = signatures.row(int(numbers[at]))
            rows = (signatures.row(int(numbers[other])) for other in candidates)
            shares = [float(np.mean(own == row)) for row in rows]
            best = max(range(len(candidates)), key=lambda i: (shares[i], -candidates[i]))
            if shares[best] >= self.similarity:
                is_dropped[at] = 1
                yield int(numbers[at]), int(numbers[candidates[best]]), shares[best]

    def _bands(
        self, signatures: _Signatures
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Members and predecessors, of shapes (M,) and (BANDS, M).

        Members are the documents that share a band with another, as indexes into `which`. A
        predecessor is the index of the previous member with the same minima in a band, or -1.
        """
        # Pair each document with the next document that has the same minima in a band.
        pairs: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        is_member = np.zeros(len(self.which), dtype=bool)
        for band in range(BANDS):
            keys = signatures.band_keys(band)[self.which]
            order = np.argsort(keys, kind="stable").astype(np.int32)
            same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
            pairs.append((order[same + 1], order[same]))
            is_member[pairs[-1][0]] = is_member[pairs[-1][1]] = True
        # Write the pairs as predecessors, by the index of a member instead of its document.
        members = np.flatnonzero(is_member)
        rank = np.cumsum(is_member, dtype=np.int32) - np.int32(1)
        before = np.full((BANDS, len(members)), -1, dtype=np.int32)
        for band, (later, earlier) in enumerate(pairs):
            before[band, rank[later]] = rank[earlier]
        return members, before


def _kept_candidates(
    member: int, before: npt.NDArray[np.int32], is_dropped: bytearray
) -> list[int]:
    """The kept members before `member` that share a band with it.

    `before` chains each member to its predecessor in a band. Dropped members are removed from the
    chains, so that each dropped member is visited once.
    """
    kept: set[int] = set()
    for chain in before:
        candidate = int(chain[member])
        compared = 0
        if candidate >= 0 and is_dropped[candidate]:
            candidate = int(chain[candidate])  # kept, or -1: its own chain was shortened before
            chain[member] = candidate
        while candidate >= 0 and compared < MAX_COMPARED:
            kept.add(candidate)
            compared += 1
            candidate = int(chain[candidate])
    return sorted(kept)


class _Signatures:
    """The minima of all shards, mapped from the disk."""

    def __init__(self, folder: Path, shards: Sequence[MinHashShard]) -> None:
        filled = [shard for shard in shards if shard.documents]
        self._starts = np.cumsum([0, *(shard.documents for shard in filled)])
        self._maps = [
            np.memmap(path, dtype="<u4", mode="r", shape=(shard.documents, MINIMA))
            for shard in filled
            for path in [minhash_path(folder, shard.number, "min")]
        ]

    def row(self, document: int) -> npt.NDArray[np.uint32]:
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        return self._maps[shard][document - self._starts[shard]]

    def band_keys(self, band: int) -> npt.NDArray[np.uint64]:
        """A 64-bit hash per document of its minima in one band."""
        keys = np.empty(int(self._starts[-1]), dtype=np.uint64)
        for start, rows in zip(self._starts, self._maps, strict=False):
            for at in range(0, len(rows), _READ_ROWS):
                part = rows[at : at + _READ_ROWS, band * ROWS : (band + 1) * ROWS]
                key = np.zeros(len(part), dtype=np.uint64)
                for column in range(ROWS):
                    key = mix(key ^ part[:, column].astype(np.uint64)) + np.uint64(column + 1)
                keys[start + at : start + at + len(part)] = key
        return keys
