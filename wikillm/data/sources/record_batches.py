"""Record batches: consecutive records of one source, as they are sent from the reader to a worker.

JSON Lines are sent uncut, about 1 MiB at a time, and the worker that parses them cuts them into
records: the reader only looks for line feeds at the ends of a batch and at the borders of shards.
It sends 1,000 MB/s in this way, whatever the length of the lines; cut into records, lines of 300
bytes would be sent at 200 MB/s. The reader cuts the other formats.
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
    """Whole lines. The first record begins at `start`; the last has no line feed."""

    source: int  # index into the list of source files
    start: int
    run: bytes
    limit: int  # longest record that is parsed, in bytes

    @property
    def end(self) -> int:
        """The offset after the last record."""
        return self.start + len(self.run)

    def items(self) -> list[Item]:
        return split_run(self.run, self.start, self.limit)

    def cut(self, at: int) -> tuple[LineBatch, LineBatch | None]:
        """The records that start before offset `at` (at least the first record), and the rest."""
        feed = self.run.find(b"\n", at - self.start - 1)
        if feed < 0:
            return self, None
        rest = self._of(self.run[feed + 1 :], self.start + feed + 1)
        return self._of(self.run[:feed], self.start), rest

    def _of(self, lines: bytes, offset: int) -> LineBatch:
        found = trimmed(lines, offset, self.limit)
        assert found is not None, "a batch starts and ends with a record"
        return LineBatch(self.source, *found, self.limit)


class ItemBatch(NamedTuple):
    """Records that the reader has cut; `found` is never empty."""

    source: int
    found: list[Item]

    @property
    def start(self) -> int:
        return self.found[0][0]

    @property
    def end(self) -> int:
        offset, _, size = self.found[-1]
        return offset + size

    def items(self) -> list[Item]:
        return self.found

    def cut(self, at: int) -> tuple[ItemBatch, ItemBatch | None]:
        """Like `LineBatch.cut`."""
        first = bisect_left(self.found, at, key=itemgetter(0))
        if first == len(self.found):
            return self, None
        return ItemBatch(self.source, self.found[:first]), ItemBatch(
            self.source, self.found[first:]
        )


RecordBatch = LineBatch | ItemBatch


def trimmed(lines: bytes, offset: int, limit: int) -> tuple[int, bytes] | None:
    """The lines without blank lines at both ends, after their offset; None if all are blank."""
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
        elif (found := trimmed(run, start, limit)) is not None:
            yield LineBatch(source, *found, limit)


def batches_of_items(source: int, items: Iterable[Item]) -> Iterator[RecordBatch]:
    """Records that were cut one by one, in batches of about `BATCH_BYTES`."""
    found: list[Item] = []
    held = 0
    for item in items:
        found.append(item)
        held += len(item[1] or b"")
        if held >= BATCH_BYTES:
            yield ItemBatch(source, found)
            found = []
            held = 0
    if found:
        yield ItemBatch(source, found)
