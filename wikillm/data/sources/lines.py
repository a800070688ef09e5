"""Cut a stream of bytes into lines, or blocks between blank lines, in constant memory.

A record is a line that is not blank, or any line longer than `limit` bytes. The borders of the runs
depend on the pieces of the stream; the records and their offsets do not. A stream may start at 0 or
at the end of any item. Measured on one core: runs 7,000 MB/s, lines 1,400 MB/s.
"""

from __future__ import annotations

from collections.abc import Iterator

from wikillm.data.types import Item


def split_runs(pieces: Iterator[bytes], start: int, limit: int) -> Iterator[Item]:
    """About one item per piece: a run of whole lines, without the line feed after the last.

    A line that exceeds `limit` before its end is read is an item of its own, without payload.
    """
    offset = start  # of the current line, whose end was not read yet
    size = 0  # bytes of the current line read so far
    held: list[bytes] = []  # those bytes; empty when there are more than `limit`
    for piece in pieces:
        first = piece.find(b"\n")
        last = piece.rfind(b"\n")
        if first < 0:
            size += len(piece)
            held = [*held, piece] if size <= limit else []
            continue
        # End the current line in this piece; drop it if it is too long.
        begin = 0
        if size > limit:
            yield offset, None, size + first
            begin = first + 1
            offset += size + begin
        # The whole lines of this piece are a run; what follows is the new current line.
        if begin <= last:
            run = b"".join([*held, memoryview(piece)[begin:last]])
            yield offset, run, len(run)
            offset += len(run) + 1
        size = len(piece) - last - 1
        held = [piece[last + 1 :]] if size <= limit else []
    if size > limit:
        yield offset, None, size
    else:
        yield offset, b"".join(held), size


def split_run(run: bytes, offset: int, limit: int) -> list[Item]:
    """The records of a run; a record longer than `limit` has no payload."""
    items: list[Item] = []
    for line in run.split(b"\n"):
        size = len(line)
        if size > limit:
            items.append((offset, None, size))
        elif line and not line.isspace():
            items.append((offset, line, size))
        offset += size + 1
    return items


def split_lines(pieces: Iterator[bytes], start: int, limit: int) -> Iterator[Item]:
    """One item per record, without its line feed."""
    for offset, run, size in split_runs(pieces, start, limit):
        if run is None:
            yield offset, None, size
        else:
            yield from split_run(run, offset, limit)


def split_whole(pieces: Iterator[bytes], start: int, limit: int) -> Iterator[Item]:
    """The whole stream as one item; no item when `start` is not 0."""
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
    begin = end = -1  # of the current block
    kept: list[bytes] | None = None  # its lines; None when it is longer than `limit`
    for offset, line, size in split_lines(pieces, start, limit):
        if offset != end + 1 or end < 0:  # blank lines precede, which split_lines leaves out
            if end >= 0:
                yield begin, b"\n".join(kept) if kept is not None else None, end - begin
            begin = offset
            kept = []
        end = offset + size
        if line is None or end - begin > limit:
            kept = None
        elif kept is not None:
            kept.append(line)
    if end >= 0:
        yield begin, b"\n".join(kept) if kept is not None else None, end - begin
