"""The bytes of a source: decompressed, as UTF-8, from any offset, in pieces of about 1 MiB.

gz and bz2 are read to the end of their last stream with decompressors of our own driving, since Python's file
objects take a damaged later stream of a bz2 file for harmless trailing bytes. A piece never exceeds `PIECE_BYTES`
by more than a factor of two, however well the file is compressed. Seeking costs nothing in a plain file and a
decompression up to the offset otherwise.
"""

from __future__ import annotations

import bz2
import codecs
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.types import SourceFile

PIECE_BYTES = 1 << 20
TYPICAL_RATIO = {"none": 1.0, "gz": 3.0, "bz2": 4.0}
"""Decompressed bytes per byte on disk, for estimates: wiki dumps and Chinese JSON give 2.8-3.4 and 3.6-4.5."""


def pieces(source: SourceFile, start: int = 0, on_read: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The decompressed UTF-8 bytes of `source` from offset `start` on.

    `on_read` hears how many bytes came from the disk. Raises DataError when a compressed file is cut off or
    damaged, or when a transcoded one does not decode, saying how far it could be read.
    """
    heard = on_read or (lambda _: None)
    with open(source.path, "rb") as file:
        if source.compression == "none" and source.encoding == "utf-8":
            file.seek(start)
            while piece := file.read(PIECE_BYTES):
                heard(len(piece))
                yield piece
            return
        stream = _decompressed(source, file, heard)
        if source.encoding != "utf-8":
            stream = _transcoded(source, stream)
        position = 0
        for piece in stream:
            if position + len(piece) > start:
                yield piece[max(0, start - position) :]
            position += len(piece)


def head(source: SourceFile, size: int) -> bytes:
    """The first `size` decompressed bytes, fewer when there are fewer, as they are (not transcoded)."""
    raw = SourceFile(source.path, source.size, source.format, source.compression)
    found = b""
    for piece in pieces(raw):
        found += piece
        if len(found) >= size:
            break
    return found[:size]


class _Bz2:
    """One bz2 stream; `more` says that it holds output that was not taken yet."""

    def __init__(self) -> None:
        self._inner = bz2.BZ2Decompressor()

    def feed(self, data: bytes) -> bytes:
        return self._inner.decompress(data, PIECE_BYTES)

    @property
    def more(self) -> bool:
        return not self._inner.eof and not self._inner.needs_input

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data


class _Gz:
    """One gzip member, with the same face as `_Bz2`. zlib checks its CRC and length."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._full = False

    def feed(self, data: bytes) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, PIECE_BYTES)
        self._full = len(out) == PIECE_BYTES
        return out

    @property
    def more(self) -> bool:
        return not self._inner.eof and (self._full or bool(self._inner.unconsumed_tail))

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data


def _decompressed(source: SourceFile, file: BinaryIO, on_read: Callable[[int], None]) -> Iterator[bytes]:
    if source.compression == "none":
        while piece := file.read(PIECE_BYTES):
            on_read(len(piece))
            yield piece
        return
    make = _Bz2 if source.compression == "bz2" else _Gz
    unit: _Bz2 | _Gz = make()
    fresh = True  # nothing was fed to `unit` yet
    given = 0
    try:
        while raw := file.read(PIECE_BYTES // 4):
            on_read(len(raw))
            while raw or unit.more:
                if fresh and not (raw := raw.lstrip(b"\0")):  # zero padding between and after streams
                    break
                out, raw, fresh = unit.feed(raw), b"", False
                if out:
                    given += len(out)
                    yield out
                if unit.eof:
                    raw, unit, fresh = unit.unused, make(), True
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(source, given, f"{error}") from None
    if not fresh:
        raise _damaged(source, given, "it ends in the middle of a compressed stream: an unfinished download?")


def _damaged(source: SourceFile, given: int, why: str) -> DataError:
    return DataError(
        f"A {source.compression} file is damaged or cut off.",
        got=f"{source.path} ({format_size(source.size)}): {why}\n{given} bytes could be decompressed before that",
        fix=f"download it again, and compare its checksum ({'bzip2 -t' if source.compression == 'bz2' else 'gzip -t'} tests it)",
    )


def _transcoded(source: SourceFile, stream: Iterator[bytes]) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(source.encoding)("strict")
    given = 0
    try:
        for piece in stream:
            text = decoder.decode(piece)
            if text:
                given += len(text)
                yield text.encode()
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise DataError(
            f"A file declared as {source.encoding} does not decode.",
            got=f"{source.path}: {error}, after {given} characters",
            fix="download it again, or convert it to UTF-8 with iconv",
        ) from None


def file_and_line(source: SourceFile, offset: int) -> str:
    """`FILE:LINE` of an offset, for a message; reads the file up to there."""
    line = 1
    left = offset
    for piece in pieces(source):
        line += piece.count(b"\n", 0, left)
        left -= len(piece)
        if left <= 0:
            break
    return f"{Path(source.path)}:{line}"
