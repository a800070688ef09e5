"""Cut records out of text that is no JSON and no XML: a whole file, blocks between blank lines, rows of a CSV file.

Same contract as `split`: items `(offset, payload, size)`, payload None above `limit`, a start at 0 or at the end of
any earlier item. Rows follow RFC 4180: a line break between quotes belongs to the field, a quote inside a quoted field
is doubled. Whether a byte lies between quotes depends on the number of quotes before it in its row and on nothing
else, so borders are the same from every start.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator

from wikillm.data.sources.lines import split_lines
from wikillm.data.sources.split import BOM
from wikillm.data.types import Item

_BREAK = re.compile(rb'["\n]')
_BLANK = (b"", b"\r")  # white space may be a row: a tab separates two empty fields
DELIMITERS = (",", "\t", ";")
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the length of a document is data.max_document_bytes' business


def split_whole(pieces: Iterator[bytes], start: int, limit: int) -> Iterator[Item]:
    """The whole stream as one item; nothing when it is not read from its beginning."""
    if start:
        return
    kept: list[bytes] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        kept = [*kept, piece] if size <= limit else []
    if size:
        yield 0, b"".join(kept) if size <= limit else None, size


def split_blocks(pieces: Iterator[bytes], start: int, limit: int) -> Iterator[Item]:
    """One item per run of lines that are not blank."""
    begin, end = start, -1
    kept: list[bytes] | None = []
    for offset, line, size in split_lines(pieces, start, limit):
        if offset != end + 1 or end < 0:  # blank lines, which split_lines leaves out, stand between
            if end >= 0:
                yield begin, b"\n".join(kept) if kept is not None else None, end - begin
            begin, kept = offset, []
        end = offset + size
        if line is None or end - begin > limit:
            kept = None
        elif kept is not None:
            kept.append(line)
    if end >= 0:
        yield begin, b"\n".join(kept) if kept is not None else None, end - begin


def split_rows(pieces: Iterator[bytes], start: int, limit: int) -> Iterator[Item]:
    """One item per row of a CSV file that is not empty, its line feed not included. The header is a row like any."""
    row, size, is_quoted = start, 0, False
    kept: list[bytes] = []
    for piece in pieces:
        begin = at = 0  # the row's part of this piece starts at `begin`; `at` is scanned up to
        while True:
            if is_quoted:
                cut = piece.find(b'"', at)
            else:
                found = _BREAK.search(piece, at)
                cut = found.start() if found else -1
            if cut < 0:
                break
            at = cut + 1
            if piece[cut] == 0x22:
                is_quoted = not is_quoted
                continue
            size += cut - begin
            payload = b"".join([*kept, piece[begin:cut]]) if size <= limit else None
            if payload not in _BLANK:
                yield row, payload, size
            row, size, kept, begin = row + size + 1, 0, [], at
        size += len(piece) - begin
        kept = [*kept, piece[begin:]] if size <= limit else []
    payload = b"".join(kept) if size <= limit else None
    if payload not in _BLANK:
        yield row, payload, size


def columns_of(header: bytes) -> tuple[list[str], str]:
    """The names in a CSV file's first row, and the delimiter: of comma, tab and semicolon the most frequent there."""
    text = header.removeprefix(BOM).decode("utf-8", errors="replace")
    delimiter = max(DELIMITERS, key=text.count)
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []), delimiter


def row_and_header(row: bytes, header: bytes) -> bytes:
    """What travels to a worker as the payload of one row."""
    return row + b"\n" + header


def parse_row(payload: bytes) -> dict[str, str]:
    """Values by column. Raises ValueError when the row does not fit its header (UnicodeDecodeError is one)."""
    row, _, header = payload.rpartition(b"\n")  # a header with a line break in it leaves a row that does not fit
    names, delimiter = columns_of(header)
    try:
        rows = list(csv.reader(io.StringIO(row.decode(), newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if len(rows) != 1:
        raise ValueError("a quote stands alone in it")
    if len(rows[0]) != len(names):
        raise ValueError(f"{len(rows[0])} fields, the header has {len(names)}")
    return dict(zip(names, rows[0], strict=True))
