"""Rows of a table (CSV, TSV) and their values, by RFC 4180, with a search for lost quotes.

Items are as in `json_array`. A quote opens a quoted field only at the beginning of the field; line
breaks up to the closing quote belong to the field.

A quote without a partner would swallow the rows up to the next quote. It is detected when its field
- is closed by a quote in the middle of text, or not at all before the end of the file;
- holds lines of which nearly all are rows of this table.

Then the line of the quote is a row by itself, which does not parse and is counted as bad. Any other
field of more than `max_lines` lines or KiB is an error that names the line: it may be a long text
or a lost quote, and only the user can decide. The decision depends on at most `max_lines` lines or
KiB after the start of a row, never on the pieces of the stream.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from wikillm.core.errors import DataError
from wikillm.data.sources.decompress import BOM
from wikillm.data.types import Item

DELIMITERS = (",", "\t", ";", "|", "\x01")
_BLANK = (b"", b"\r")  # other white space may be a row: a tab separates two empty fields
_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
_ROW_LIKE_SHARE = 0.9  # least share of row-like lines in a field that counts as rows
_JUDGED_LINES = 200  # number of lines of a field that are looked at
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # data.max_document_bytes limits documents


@dataclass(frozen=True, slots=True)
class Columns:
    """The column names and the delimiter in the header of a table."""

    names: tuple[str, ...]
    delimiter: str


@lru_cache(maxsize=64)
def columns_of(header: bytes) -> Columns:
    """The names in a table's first row, and the most frequent delimiter there, outside quotes."""
    text = header.removeprefix(BOM).decode("utf-8", errors="replace").rstrip("\r\n")
    bare = re.sub(r'"[^"]*"', "", text)
    delimiter = max(DELIMITERS, key=bare.count)
    try:
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error:  # a carriage return alone in it, or a field of gigabytes
        names = text.split(delimiter)
    return Columns(tuple(names), delimiter)


@dataclass(frozen=True, slots=True)
class _Patterns:
    row: re.Pattern[bytes]  # a whole row up to its line end, found in one pass or not at all
    closed_badly: re.Pattern[bytes]  # a row up to a quote that closes a field within its text


@lru_cache(maxsize=8)
def _patterns(delimiter: str) -> _Patterns:
    d = re.escape(delimiter.encode())
    value = rb"(?:" + _QUOTED + rb'|[^"\n' + d + rb"][^\n" + d + rb"]*+|)"
    before = rb"(?:" + value + d + rb")*+"
    return _Patterns(
        re.compile(before + value + rb"(?=\r?\n)"),
        re.compile(before + _QUOTED + rb"(?!" + d + rb"|\r?\n|\r?\Z)"),
    )


def row_and_header(row: bytes, header: bytes) -> bytes:
    """The payload for a worker: one row, with the header that names its columns."""
    return row + b"\n" + header


def parse_row(payload: bytes) -> dict[str, str]:
    """Values by column. Raises ValueError when the row does not fit its header."""
    # A header with a line break in it leaves a row that does not fit.
    row, _, header = payload.rpartition(b"\n")
    columns = columns_of(header)
    lines = io.StringIO(row.decode(), newline="")
    try:
        rows = list(csv.reader(lines, delimiter=columns.delimiter, strict=True))
    except csv.Error as error:
        reason = "a quote in it has no partner" if "end of data" in str(error) else str(error)
        raise ValueError(reason) from None
    if len(rows) != 1:
        raise ValueError("it has a quote without a partner, or a carriage return")
    if len(rows[0]) != len(columns.names):
        raise ValueError(f"{len(rows[0])} fields, the header has {len(columns.names)}")
    return dict(zip(columns.names, rows[0], strict=True))


@dataclass(slots=True)
class RowSplitter:
    """Cuts a table into rows, the header included.

    Attributes:
        limit: longest row that is kept in memory, in bytes.
        max_lines: lines, and KiB, of the longest row with a quoted line break.
        where: returns FILE:LINE of an offset, for an error.
    """

    columns: Columns
    limit: int
    max_lines: int = 1000
    where: Callable[[int], str] = "byte {}".format
    _buffer: bytes = field(default=b"", init=False)
    _base: int = field(default=0, init=False)  # offset of buffer[0]
    _at: int = field(default=0, init=False)  # index in the buffer of the row being looked at
    _is_end: bool = field(default=False, init=False)
    # For a line that is too long to keep in memory: its offset, and the quotes in it so far.
    _skipped_from: int | None = field(default=None, init=False)
    _quotes: int = field(default=0, init=False)

    def split(self, pieces: Iterator[bytes], start: int) -> Iterator[Item]:
        """One item per non-empty row, without its line feed; `pieces` begin at offset `start`."""
        self._base = start
        for piece in pieces:
            self._hold(piece)
            yield from self._rows()
        self._is_end = True
        if self._at < len(self._buffer) and not self._buffer.endswith(b"\n"):
            self._hold(b"\n")  # the last row ends like the others
        yield from self._rows()
        if self._skipped_from is not None:
            yield self._skipped(self._base + self._at)

    def _hold(self, piece: bytes) -> None:
        self._buffer = self._buffer[self._at :] + piece
        self._base += self._at
        self._at = 0

    def _rows(self) -> Iterator[Item]:
        """All rows that end in the buffer."""
        row = _patterns(self.columns.delimiter).row
        while (end := self._buffer.find(b"\n", self._at)) >= 0:
            at = self._at
            buffer = self._buffer
            if self._skipped_from is not None:
                self._quotes += buffer.count(b'"', at, end)
                yield self._skipped(self._base + end)
                self._at = end + 1
                continue
            # A line with a quote may be a part of a row, which has a quoted line break.
            if buffer.find(b'"', at, end) >= 0:
                match = row.match(buffer, at)
                found = buffer.find(b"\n", match.end()) if match else -1
                if match is None or found > end:
                    decided = self._end_of_row(at, end, found)
                    if decided is None:
                        break
                    end = decided
            payload = buffer[at:end]
            self._at = end + 1
            if payload not in _BLANK:
                yield self._base + at, payload if end - at <= self.limit else None, end - at
        self._forget()

    def _end_of_row(self, at: int, end: int, found: int) -> int | None:
        """The end of a row that has a quoted line break or a lost quote; None to read more first.

        `end` is the end of the row's first line. `found` is the end of the row if all its quotes
        have partners, else -1.
        """
        buffer = self._buffer
        # All quotes have partners within the bound: this is one row, unless the field holds rows.
        if (
            found >= 0
            and found - at <= self.max_lines << 10
            and buffer.count(b"\n", at, found) <= self.max_lines
        ):
            return end if self._are_rows(buffer[end + 1 : found].split(b"\n")[:-1]) else found
        # The row is longer than the bound, or has a lost quote: look up to the bound.
        stop = self._window(at)
        if stop is None:
            return end if self._is_end else None
        closed_badly = _patterns(self.columns.delimiter).closed_badly
        if closed_badly.match(buffer, at, stop) is not None:
            return end
        if self._are_rows(buffer[end + 1 : stop].split(b"\n")[:-1]):
            return end
        raise DataError(
            "A quoted field of a table goes on for more than "
            f"{self.max_lines:,} lines or KiB (data.max_field_lines).",
            got=f"{self.where(self._base + at)}: a quote opens a field there",
            fix=f"data.max_field_lines={10 * self.max_lines}\n"
            "if the field really is that long; otherwise close it, or remove the lost quote",
        )

    def _window(self, at: int) -> int | None:
        """The farthest allowed end of a row, `max_lines` lines or KiB; None if not read yet."""
        byte_bound = at + (self.max_lines << 10)
        if self._buffer.count(b"\n", at, byte_bound) <= self.max_lines:
            return byte_bound if byte_bound <= len(self._buffer) else None
        stop = at
        for _ in range(self.max_lines + 1):
            stop = self._buffer.index(b"\n", stop) + 1
        return min(stop - 1, byte_bound)

    def _are_rows(self, lines: list[bytes]) -> bool:
        """Whether nearly all of these lines of a field have as many fields as the header."""
        columns = len(self.columns.names)
        lines = [line for line in lines[:_JUDGED_LINES] if line.strip()]
        if columns < 2 or len(lines) < (8 if columns == 2 else 4):
            return False
        delimiter = self.columns.delimiter.encode()
        fitting = sum(line.count(delimiter) == columns - 1 for line in lines)
        return fitting >= _ROW_LIKE_SHARE * len(lines)

    def _forget(self) -> None:
        """Drop the buffered part of a line that is too long to keep in memory."""
        longest = max(self.limit, self.max_lines << 10)
        if len(self._buffer) - self._at <= longest or self._buffer.find(b"\n", self._at) >= 0:
            return
        if self._skipped_from is None:
            self._skipped_from = self._base + self._at
            self._quotes = 0
        self._quotes += self._buffer.count(b'"', self._at)
        self._at = len(self._buffer)

    def _skipped(self, end: int) -> Item:
        """The item of a line that was not kept in memory; the line ends at `end`."""
        offset = self._skipped_from
        assert offset is not None, "a line was skipped"
        self._skipped_from = None
        size = end - offset
        if self._quotes % 2:
            raise DataError(
                "A line of a table is too long to keep in memory, "
                "and a quoted field is still open at its end.",
                got=f"{self.where(offset)}: {size:,} bytes",
                fix=f"data.max_document_bytes={size * 2}\nor look at the quotes of that line",
            )
        return offset, None, size
