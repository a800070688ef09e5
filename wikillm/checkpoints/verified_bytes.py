"""Keeps bytes of a checkpoint that were read for verification, so that each is read only once.

If as many ranks load the checkpoint as wrote it, a rank verifies exactly what it will load.
Otherwise it loads a part of what it has verified, and reads the rest from the files.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence

Piece = tuple[int, memoryview]
"""(first byte in its file, content)."""


class VerifiedBytes:
    """Verified bytes of one checkpoint, by the name of the tensor file. `add` is thread-safe.

    Args:
        limit: largest number of bytes to keep.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = limit
        self._pieces: dict[str, list[Piece]] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Free everything."""
        self._pieces.clear()
        self._free = self._limit

    def add(self, name: str, ranges: Sequence[tuple[int, int]], data: memoryview) -> None:
        """Keep `data`, the bytes of these ranges of a file, if it fits; ranges do not overlap."""
        with self._lock:
            if self._free < len(data):
                return
            self._free -= len(data)
            pieces = self._pieces.setdefault(name, [])
            at = 0
            for start, stop in ranges:
                pieces.append((start, data[at : at + stop - start]))
                at += stop - start
            pieces.sort(key=_first)

    def copy(self, name: str, start: int, target: memoryview) -> Iterator[tuple[int, int]]:
        """Fill `target` with a file's bytes from `start` on; yields the ranges that are missing."""
        pieces = self._pieces.get(name, [])
        stop = start + len(target)
        at = start
        number = max(0, bisect_right(pieces, start, key=_first) - 1)
        while at < stop and number < len(pieces):
            first, data = pieces[number]
            number += 1
            begin = max(at, first)
            end = min(stop, first + len(data))
            if begin >= end:
                continue
            if at < begin:
                yield at, begin
            target[begin - start : end - start] = data[begin - first : end - first]
            at = end
        if at < stop:
            yield at, stop


def _first(piece: Piece) -> int:
    return piece[0]
