"""Read the records of all sources as one stream, and cut the stream into shards.

A position is a byte offset in the concatenated decompressed sources. The records with the same
`position // shard_bytes` form a shard, and shards are numbered in order. So the shards depend only
on the sources and on `shard_bytes`, on any machine and after any number of interruptions. Reading
resumes at a `Cursor` saved after any record.
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
from wikillm.data.sources.tables import RowSplitter, columns_of, row_and_header
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
class ShardRange:
    """The number of a shard, and where its first record starts and its last record ends."""

    number: int
    start: Cursor
    end: Cursor


@dataclass(frozen=True, slots=True)
class RawShard(ShardRange):
    """The records of one shard."""

    batches: list[RecordBatch]


def estimated_bytes(sources: Sequence[SourceFile]) -> int:
    """Decompressed size of all sources; exact for plain files, else by a typical ratio."""
    total = 0
    for source in sources:
        is_parquet = source.format == "parquet"
        ratio = parquet.TYPICAL_RATIO if is_parquet else TYPICAL_RATIO[source.compression]
        total += int(source.size * ratio)
    return total


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
    splitter = RowSplitter(columns_of(header), limit, source.max_field_lines, where)
    for offset, row, size in splitter.split(stream, start):
        if offset != header_offset:
            yield offset, row if row is None else row_and_header(row, header), size


def csv_header(source: SourceFile, limit: int) -> tuple[int, bytes]:
    """Offset and bytes of the first line of a table; no bytes if it is missing or too long."""
    for offset, row, _ in split_lines(pieces(source), 0, limit):
        return offset, row or b""
    return 0, b""


@dataclass(frozen=True, slots=True)
class ShardReader:
    """Reads the records of `sources`, and cuts them into shards.

    Attributes:
        shard_bytes: decompressed bytes per shard.
        max_document_bytes: longest record that is kept in memory.
        threads: number of threads that decompress a bz2 file of several streams.
    """

    sources: Sequence[SourceFile]
    shard_bytes: int
    max_document_bytes: int
    threads: int = 1

    def read(
        self, start: Cursor = Cursor(), number: int = 0, on_read: OnRead | None = None
    ) -> Generator[RawShard, None, None]:
        """The shards from `start` on, the first of them numbered `number`.

        Raises DataError when a source changed since it was inspected: its shards would not match
        the sha256 in the manifest.
        """
        batches: list[RecordBatch] = []  # of the shard that is being collected
        shard = -1  # position // shard_bytes of its records
        end = start  # of its last record
        base = start.base
        offset = start.offset
        for index in range(start.source, len(self.sources)):
            source = self.sources[index]
            for batch in self._batches(index, offset, on_read):
                rest: RecordBatch | None = batch
                # A batch may hold the borders of several shards.
                while rest is not None:
                    shard_of_rest = (base + rest.start) // self.shard_bytes
                    if shard_of_rest != shard and batches:
                        _refuse_changed(source)
                        yield RawShard(number, start, end, batches)
                        start = end
                        number += 1
                        batches = []
                    shard = shard_of_rest
                    head, rest = rest.cut((shard + 1) * self.shard_bytes - base)
                    batches.append(head)
                    end = Cursor(index, head.end, base)
                offset = batch.end
            _refuse_changed(source)
            base += offset
            offset = 0
        if batches:
            yield RawShard(number, start, end, batches)

    def _batches(self, index: int, start: int, on_read: OnRead | None) -> Iterator[RecordBatch]:
        """The record batches of source number `index` from offset `start` on."""
        source = self.sources[index]
        limit = self.max_document_bytes
        if source.format in LINES:
            runs = split_runs(pieces(source, start, on_read, self.threads), start, limit)
            return batches_of_runs(index, runs, limit)
        return batches_of_items(index, items_of(source, start, limit, on_read, self.threads))


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
