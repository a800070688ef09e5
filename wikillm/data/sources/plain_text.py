"""Cut records out of plain text: a whole file, or blocks between blank lines (lines: `lines`; tables: `rows`).

Same contract as `split`: items `(offset, payload, size)`, payload None above `limit`, a start at 0 or at the end of
any earlier item.
"""

from __future__ import annotations

from collections.abc import Iterator

from wikillm.data.sources.lines import split_lines
from wikillm.data.types import Item


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
