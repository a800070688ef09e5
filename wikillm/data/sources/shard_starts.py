"""Find where each shard begins before any of them is built, so that many machines can build them.

The borders equal those of `sources.read.ShardReader`, which defines them. Of a plain JSON Lines
file, only a few KiB around each multiple of the shard size are read, to find the line feeds (a 50
GB file takes milliseconds). Every other file is decompressed and cut into records once; the records
are neither parsed nor tokenized.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import BinaryIO

from wikillm.data.sources.read import LINES, Cursor, OnRead, ShardReader

_Edge = tuple[int, int]
"""Offsets in a source: the start of a record, and the end of the record before (0 if none)."""
_LOOK_BYTES = 1 << 16


def find_cuts(reader: ShardReader, on_read: OnRead | None = None) -> tuple[Cursor, ...]:
    """The start of each shard in order, then the end of the last shard (shards + 1 cursors)."""
    cuts: list[Cursor] = []
    end = Cursor()  # of the last record in the earlier sources
    last_shard = -1
    base = 0
    for index in range(len(reader.sources)):
        edges, length = _edges_of(reader, index, base, on_read)
        for start, before in edges:
            shard = (base + start) // reader.shard_bytes
            if shard != last_shard:
                cuts.append(Cursor(index, before, base) if before else end)
                last_shard = shard
        if length:
            end = Cursor(index, length, base)
        base += length
    return (*cuts, end) if cuts else ()


def _edges_of(
    reader: ShardReader, index: int, base: int, on_read: OnRead | None
) -> tuple[list[_Edge], int]:
    """The edges of the records that may begin a shard, and the end of the last record."""
    source = reader.sources[index]
    is_plain = (source.compression, source.encoding) == ("none", "utf-8")
    # A blank line longer than `max_document_bytes` counts as a record, but seeking skips blank
    # lines. Seeking gives up after `_LOOK_BYTES` blank bytes, so with a larger limit it misses no
    # record.
    if source.format in LINES and is_plain and reader.max_document_bytes >= _LOOK_BYTES:
        found = _edges_by_seeking(source.path, base, reader.shard_bytes)
        if found is not None:
            return found
    edges: list[_Edge] = []
    end = 0
    until_here = replace(reader, sources=reader.sources[: index + 1])
    for shard in until_here.read(Cursor(index, 0, base), on_read=on_read):
        edges.append((shard.batches[0].start, shard.start.offset))
        end = shard.end.offset
    return edges, end


def _edges_by_seeking(path: str, base: int, shard_bytes: int) -> tuple[list[_Edge], int] | None:
    """The edge of the first record at or after each multiple of the shard size, and the end.

    None if the file must be read to find the edges.
    """
    edges: list[_Edge] = []
    with open(path, "rb") as file:
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
            edges.append((start, before))
            target = ((base + start) // shard_bytes + 1) * shard_bytes - base
        end = _end_before(file, size)
    return None if end is None else (edges, end)


def _line_from(file: BinaryIO, target: int, size: int) -> int | None:
    """The start of the first non-blank line at `target` or later; `size` if there is none.

    None after `_LOOK_BYTES` bytes of blank lines.
    """
    file.seek(max(0, target - 1))
    if target:
        # Skip the rest of the line in pieces: it may be too long to keep in memory.
        while file.readline(_LOOK_BYTES)[-1:] not in (b"\n", b""):
            pass
    at = file.tell()
    look = file.read(_LOOK_BYTES)
    blank = len(look) - len(look.lstrip())
    if blank == len(look):
        return size if at + len(look) == size else None
    return at + look.rfind(b"\n", 0, blank) + 1


def _end_before(file: BinaryIO, start: int) -> int | None:
    """The end of the last non-blank line before `start`, without line feed; 0 if there is none.

    None after `_LOOK_BYTES` bytes of blank lines.
    """
    low = max(0, start - _LOOK_BYTES)
    file.seek(low)
    look = file.read(start - low)
    kept = len(look.rstrip())
    if not kept:
        return 0 if low == 0 else None
    end = look.find(b"\n", kept)
    return low + (end if end >= 0 else len(look))
