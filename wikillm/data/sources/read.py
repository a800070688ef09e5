"""Read the records of all sources as one stream, and cut the stream into shards.

A position is a byte offset in the concatenated decompressed sources. The records with the same
`position // range` form a shard, and shards are numbered in order. So the shards depend only on the
bytes and the range, on any machine and after any number of interruptions. Reading resumes at a
`Cursor` saved after any record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from wikillm.core.errors import DataError
from wikillm.data.sources import parquet
from wikillm.data.sources.decompress import TYPICAL_RATIO, file_and_line, pieces
from wikillm.data.sources.json_array import split_array
from wikillm.data.sources.lines import split_blocks, split_lines, split_runs, split_whole
from wikillm.data.sources.mediawiki import split_pages
from wikillm.data.sources.record_batches import RecordBatch, batches_of_items, batches_of_runs
from wikillm.data.sources.tables import columns_of, row_and_header, split_rows
from wikillm.data.types import Item, SourceFile

LINES = ("jsonl", "lines")
"""Formats in which each line is a record."""
MIN_RANGE = 1 << 20
MAX_RANGE = 64 << 20
OnRead = Callable[[int], None]
"""Called with the number of bytes read from the disk."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the sources: byte `offset` of source number `source`.

    `base` is the length of all earlier sources.
    """

    __pydantic_config__ = {"extra": "forbid"}  # read from files, see `store.manifest`
    source: int = 0
    offset: int = 0
    base: int = 0

    @property
    def position(self) -> int:
        return self.base + self.offset


@dataclass(frozen=True, slots=True)
class RawShard:
    """The records of one shard, between the cursors `start` and `end`."""

    number: int
    start: Cursor
    end: Cursor
    batches: list[RecordBatch]


def estimated_bytes(sources: Sequence[SourceFile]) -> int:
    """Decompressed size of all sources; exact for plain files, else by a typical ratio."""
    return sum(int(source.size * _ratio(source)) for source in sources)


def _ratio(source: SourceFile) -> float:
    if source.format == "parquet":
        return parquet.TYPICAL_RATIO
    return TYPICAL_RATIO[source.compression]


def shard_range(estimate: int) -> int:
    """Bytes of decompressed source per shard: 1/64 of the estimate, between 1 and 64 MiB."""
    return min(max(estimate // 64, MIN_RANGE), MAX_RANGE)


def items_of(
    source: SourceFile, start: int, limit: int, on_read: OnRead | None = None, threads: int = 1
) -> Iterator[Item]:
    """The records of one source from offset `start` on, without payload above `limit` bytes.

    Raises ValueError for an unknown format.
    """
    if source.format == "parquet":
        return parquet.split_parquet(source, start, limit, on_read)
    stream = pieces(source, start, on_read, threads)
    if source.format in LINES:
        return split_lines(stream, start, limit)
    if source.format == "json":
        return split_array(stream, start, limit, source.path)
    if source.format == "text":
        return split_whole(stream, start, limit)
    if source.format == "blocks":
        return split_blocks(stream, start, limit)
    if source.format == "csv":
        return _rows_of(source, stream, start, limit)
    if source.format == "mediawiki":
        return split_pages(stream, start, limit, source.path)
    raise ValueError(f"no splitter for the format {source.format!r} of {source.path}")


def _rows_of(source: SourceFile, stream: Iterator[bytes], start: int, limit: int) -> Iterator[Item]:
    """The rows below the header. Each payload includes the header, which the worker needs."""
    header_offset, header = csv_header(source, limit)
    where = partial(file_and_line, source)
    rows = split_rows(stream, start, limit, columns_of(header), source.max_field_lines, where)
    for offset, row, size in rows:
        if offset != header_offset:
            yield offset, row if row is None else row_and_header(row, header), size


def csv_header(source: SourceFile, limit: int) -> tuple[int, bytes]:
    """Offset and bytes of the first line of a table; no bytes if it is missing or too long."""
    for offset, row, _ in split_lines(pieces(source), 0, limit):
        return offset, row or b""
    return 0, b""


def read_shards(
    sources: Sequence[SourceFile],
    range_bytes: int,
    limit: int,
    start: Cursor = Cursor(),
    number: int = 0,
    on_read: OnRead | None = None,
    threads: int = 1,
) -> Generator[RawShard, None, None]:
    """Cut the stream into shards from `start` on, the first of them numbered `number`.

    Args:
        range_bytes: decompressed bytes per shard.
        limit: longest record that is kept in memory, in bytes.
        threads: number of threads that decompress a bz2 file of several streams.

    Raises DataError when a source changed since it was inspected: its shards would not fit the
    digest in the manifest.
    """
    batches: list[RecordBatch] = []
    current_bucket = -1
    last = start
    base = start.base
    offset = start.offset
    for index in range(start.source, len(sources)):
        for batch in _batches_of(index, sources[index], offset, limit, on_read, threads):
            rest: RecordBatch | None = batch
            # A batch may hold the borders of several shards.
            while rest is not None:
                bucket = (base + rest.start) // range_bytes
                if bucket != current_bucket and batches:
                    _refuse_changed(sources[index])
                    yield RawShard(number, start, last, batches)
                    start = last
                    number += 1
                    batches = []
                head, rest = rest.cut((bucket + 1) * range_bytes - base)
                batches.append(head)
                current_bucket = bucket
                last = Cursor(index, head.end, base)
            offset = batch.end
        _refuse_changed(sources[index])
        base += offset
        offset = 0
    if batches:
        yield RawShard(number, start, last, batches)


def _refuse_changed(source: SourceFile) -> None:
    if not source.modified:
        return
    status = os.stat(source.path)
    if (status.st_size, status.st_mtime_ns) != (source.size, source.modified):
        raise DataError(
            "A source changed while it was read.",
            got=f"{source.path}: {source.size:,} bytes before, {status.st_size:,} now",
            fix="start again once no program writes to the source",
        )


def _batches_of(
    index: int, source: SourceFile, start: int, limit: int, on_read: OnRead | None, threads: int
) -> Iterator[RecordBatch]:
    if source.format in LINES:
        runs = split_runs(pieces(source, start, on_read, threads), start, limit)
        return batches_of_runs(index, runs, limit)
    return batches_of_items(index, items_of(source, start, limit, on_read, threads))
