"""Record batches: consecutive records of one source, as they are sent from the reader to a worker.

JSON Lines are sent about 1 MiB at a time, and cut into records by the worker that parses them: the
reader only looks for line feeds at the ends of a batch and at the borders of shards. So it sends
1,000 MB/s, whatever the length of the lines; if it cut them, it would send lines of 300 bytes at
200 MB/s. Other formats are cut into records by the reader.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import NamedTuple

from wikillm.data.sources.lines import split_run
from wikillm.data.types import Item

BATCH_BYTES = 1 << 20


class LineBatch(NamedTuple):
    """Whole lines, not cut yet. The first line is a record, and so is the last."""

    source: int  # index into the list of source files
    start: int  # offset of the first line
    lines: bytes  # without the line feed of the last line
    limit: int  # longest record that is parsed, in bytes

    @property
    def end(self) -> int:
        """The offset after the last record."""
        return self.start + len(self.lines)

    def items(self) -> list[Item]:
        return split_run(self.lines, self.start, self.limit)

    def cut(self, at: int) -> tuple[LineBatch, LineBatch | None]:
        """The records that start before offset `at` (at least the first record), and the rest."""
        feed = self.lines.find(b"\n", at - self.start - 1)
        if feed < 0:
            return self, None
        rest = self._part(self.lines[feed + 1 :], self.start + feed + 1)
        return self._part(self.lines[:feed], self.start), rest

    def _part(self, lines: bytes, offset: int) -> LineBatch:
        part = without_blank_ends(lines, offset, self.limit)
        assert part is not None, "a batch starts and ends with a record"
        return LineBatch(self.source, *part, self.limit)


class ItemBatch(NamedTuple):
    """Records that the reader has cut; at least one."""

    source: int
    records: list[Item]

    @property
    def start(self) -> int:
        return self.records[0][0]

    @property
    def end(self) -> int:
        offset, _, size = self.records[-1]
        return offset + size

    def items(self) -> list[Item]:
        return self.records

    def cut(self, at: int) -> tuple[ItemBatch, ItemBatch | None]:
        """Like `LineBatch.cut`."""
        first = bisect_left(self.records, at, key=itemgetter(0))
        if first == len(self.records):
            return self, None
        rest = ItemBatch(self.source, self.records[first:])
        return ItemBatch(self.source, self.records[:first]), rest


RecordBatch = LineBatch | ItemBatch


def without_blank_ends(lines: bytes, offset: int, limit: int) -> tuple[int, bytes] | None:
    """Leave out the blank lines at both ends. None if all lines are blank.

    Returns the offset of the first line that stays, and the lines from there.
    """
    begin = 0
    end = len(lines)
    while not _is_record(lines[begin : (stop := _line_end(lines, begin))], limit):
        begin = stop + 1
        if begin > end:
            return None
    while not _is_record(lines[(line := lines.rfind(b"\n", begin, end) + 1 or begin) : end], limit):
        end = line - 1
    return offset + begin, lines[begin:end]


def _line_end(lines: bytes, begin: int) -> int:
    end = lines.find(b"\n", begin)
    return end if end >= 0 else len(lines)


def _is_record(line: bytes, limit: int) -> bool:
    return len(line) > limit or (line != b"" and not line.isspace())


def batches_of_runs(source: int, runs: Iterable[Item], limit: int) -> Iterator[RecordBatch]:
    """A batch for each of the runs of `lines.split_runs`."""
    for start, run, size in runs:
        if run is None:
            yield ItemBatch(source, [(start, None, size)])
        elif (part := without_blank_ends(run, start, limit)) is not None:
            yield LineBatch(source, *part, limit)


def batches_of_items(source: int, items: Iterable[Item]) -> Iterator[RecordBatch]:
    """Group records that the reader has cut into batches of about `BATCH_BYTES`."""
    records: list[Item] = []
    size = 0
    for item in items:
        records.append(item)
        size += len(item[1] or b"")
        if size >= BATCH_BYTES:
            yield ItemBatch(source, records)
            records = []
            size = 0
    if records:
        yield ItemBatch(source, records)
