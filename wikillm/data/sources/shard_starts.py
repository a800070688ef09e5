"""Find where each shard begins before any of them is built, so that many machines can build them.

The borders equal those of `read.read_shards`, which defines them. Of a plain JSON Lines file, only
a few KiB around each multiple of the range are read, to find the line feeds (a 50 GB file takes
milliseconds). Every other file is decompressed and cut into records once; the records are neither
parsed nor tokenized.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from wikillm.data.sources.read import LINES, Cursor, OnRead, items_of
from wikillm.data.types import SourceFile

_Edge = tuple[int, int]
"""Offsets in a source: a record's start, and the previous record's end (0 for the first)."""
_LOOK_BYTES = 1 << 16


def find_cuts(
    sources: Sequence[SourceFile], range_bytes: int, limit: int, on_read: OnRead | None = None
) -> tuple[Cursor, ...]:
    """The start of each shard in order, then the end of the last shard (shards + 1 cursors).

    Args:
        range_bytes: decompressed bytes per shard.
        limit: longest record that is kept in memory, in bytes.
    """
    cuts: list[Cursor] = []
    end = Cursor()
    last_bucket = -1
    base = 0
    for index, source in enumerate(sources):
        last = 0
        for offset, before in _edges(source, base, range_bytes, limit, on_read):
            bucket = (base + offset) // range_bytes
            if offset < 0:  # the final edge, which only gives the end of the last record
                last = before
            elif bucket != last_bucket:
                cuts.append(Cursor(index, before, base) if before else end)
                last_bucket = bucket
        if last:
            end = Cursor(index, last, base)
        base += last
    return (*cuts, end) if cuts else ()


def _edges(
    source: SourceFile, base: int, range_bytes: int, limit: int, on_read: OnRead | None
) -> Iterator[_Edge]:
    """The edges of all records that may begin a shard, then (-1, end of the last record)."""
    is_plain = (source.compression, source.encoding) == ("none", "utf-8")
    # A blank line longer than `limit` counts as a record, but seeking skips blank lines. Seeking
    # gives up after `_LOOK_BYTES` blank bytes, so it misses no record if `limit` is at least that.
    if source.format in LINES and is_plain and limit >= _LOOK_BYTES:
        found = _by_seeking(source, base, range_bytes)
        if found is not None:
            yield from found
            return
    before = 0
    for offset, _, size in items_of(source, 0, limit, on_read):
        yield offset, before
        before = offset + size
    yield -1, before


def _by_seeking(source: SourceFile, base: int, range_bytes: int) -> list[_Edge] | None:
    """The edge of the first record at or after each multiple of the range, then the final edge.

    None if the file must be read to find the edges.
    """
    found: list[_Edge] = []
    with open(source.path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        target = 0
        while target < size:
            start = _line_from(file, target, size)
            if start is None:
                return None
            if start == size:
                break
            before = _end_before(file, start)
            if before is None:
                return None
            found.append((start, before))
            target = ((base + start) // range_bytes + 1) * range_bytes - base
        last = _end_before(file, size)
    return None if last is None else [*found, (-1, last)]


def _line_from(file: BinaryIO, target: int, size: int) -> int | None:
    """The start of the first non-blank line at `target` or later; `size` if there is none."""
    at = target
    if target:
        at = _after_line_feed(file, target - 1)
    file.seek(at)
    look = file.read(_LOOK_BYTES)
    blank = len(look) - len(look.lstrip())
    if blank == len(look):
        return size if at + len(look) == size else None
    return at + look.rfind(b"\n", 0, blank) + 1


def _after_line_feed(file: BinaryIO, start: int) -> int:
    """The position behind the first line feed from `start` on, or the end of the file."""
    file.seek(start)
    while piece := file.read(_LOOK_BYTES):
        at = piece.find(b"\n")
        if at >= 0:
            return file.tell() - len(piece) + at + 1
    return file.tell()


def _end_before(file: BinaryIO, start: int) -> int | None:
    """The end of the last non-blank line before `start`, without line feed; 0 if there is none."""
    low = max(0, start - _LOOK_BYTES)
    file.seek(low)
    look = file.read(start - low)
    kept = len(look.rstrip())
    if not kept:
        return 0 if low == 0 else None
    end = look.find(b"\n", kept)
    return low + (end if end >= 0 else len(look))
