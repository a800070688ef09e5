"""The bytes of a source: decompressed, as UTF-8, from any offset, in pieces of about 1 MiB.

gz, bz2 and xz are read to the end of their last stream with decompressors of our own driving, since Python's file
objects take a damaged later stream of a bz2 file for harmless trailing bytes; zst by Arrow, which `datasets` brings. A
piece never exceeds `PIECE_BYTES` by more than a factor of two, however well the file is compressed, and a file that
expands like a decompression bomb is refused. Seeking costs nothing in a plain file and a decompression up to the
offset otherwise.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.sources.bz2_streams import decompress_in_threads
from wikillm.data.types import SourceFile

BOM = codecs.BOM_UTF8
PIECE_BYTES = 1 << 20
TYPICAL_RATIO = {"none": 1.0, "gz": 3.0, "bz2": 4.0, "xz": 4.5, "zst": 3.7}
"""Decompressed bytes per byte on disk, for estimates: wiki dumps and Chinese JSON give 2.8-3.4 (gz), 3.6-4.5 (bz2)."""
BOMB_BYTES, BOMB_RATIO = 1 << 28, 200
"""A file that gives more than so many bytes, and so many times what was read of it, is no text: text stays below 20."""
_XZ_MEMORY = 1 << 29  # `xz -9` needs 65 MiB; a header may ask for 4 GiB
_TEST_COMMANDS = {"gz": "gzip -t", "bz2": "bzip2 -t", "xz": "xz -t", "zst": "zstd -t"}


def pieces(
    source: SourceFile,
    start: int = 0,
    on_read: Callable[[int], None] | None = None,
    threads: int = 1,
) -> Iterator[bytes]:
    """The decompressed UTF-8 bytes of `source` from offset `start` on.

    `on_read` hears how many bytes came from the disk. With several `threads` the streams of a bz2 file are decompressed
    in parallel. Raises DataError when a compressed file is cut off or
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
        stream = _decompressed(source, file, heard, threads)
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


class _Bounded:
    """One bz2 or xz stream; `more` says that it holds output that was not taken yet."""

    def __init__(self, compression: str) -> None:
        self._inner: bz2.BZ2Decompressor | lzma.LZMADecompressor
        if compression == "bz2":
            self._inner = bz2.BZ2Decompressor()
        else:
            self._inner = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

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
    """One gzip member, with the same face as `_Bounded`. zlib checks its CRC and length."""

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


def _decompressed(
    source: SourceFile, file: BinaryIO, on_read: Callable[[int], None], threads: int
) -> Iterator[bytes]:
    if source.compression == "none":
        while piece := file.read(PIECE_BYTES):
            on_read(len(piece))
            yield piece
        return
    streams = (
        _zstandard(file)
        if source.compression == "zst"
        else _streams(source.compression, file, threads)
    )
    given = told = 0
    try:
        for piece in streams:
            read = max(told, file.tell())  # a thread that failed is read again
            on_read(read - told)
            given, told = given + len(piece), read
            if given > max(BOMB_BYTES, BOMB_RATIO * read):
                raise _bomb(source, given, read)
            yield piece
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(source, given, f"{error}") from None
    on_read(source.size - told)


def _streams(compression: str, file: BinaryIO, threads: int) -> Iterator[bytes]:
    """All streams of a gz, bz2 or xz file, one after the other."""
    if compression == "bz2" and threads > 1:
        yield from decompress_in_threads(file, threads)

    def make() -> _Bounded | _Gz:
        return _Gz() if compression == "gz" else _Bounded(compression)

    unit = make()
    fresh = True  # nothing was fed to `unit` yet
    while raw := file.read(PIECE_BYTES // 4):
        while raw or unit.more:
            if fresh and not (raw := raw.lstrip(b"\0")):  # zero padding between and after streams
                break
            out, raw, fresh = unit.feed(raw), b"", False
            if out:
                yield out
            if unit.eof:
                raw, unit, fresh = unit.unused, make(), True
    if not fresh:
        raise EOFError("it ends in the middle of a compressed stream: an unfinished download?")


def _zstandard(file: BinaryIO) -> Iterator[bytes]:
    """All frames of a zst file. Arrow raises OSError for what is damaged or cut off."""
    import pyarrow

    stream = pyarrow.CompressedInputStream(file, "zstd")
    while piece := stream.read(PIECE_BYTES // 4):
        yield piece


def _damaged(source: SourceFile, given: int, why: str) -> DataError:
    return DataError(
        f"A {source.compression} file is damaged or cut off.",
        got=f"{source.path} ({format_size(source.size)}): {why}\n{given} bytes could be decompressed before that",
        fix=f"download it again, and compare its checksum ({_TEST_COMMANDS[source.compression]} tests it)",
    )


def _bomb(source: SourceFile, given: int, read: int) -> DataError:
    return DataError(
        f"A {source.compression} file expands more than text can: {BOMB_RATIO} times and over.",
        got=f"{source.path}: {format_size(given)} came out of its first {format_size(read)}",
        fix="look at what it is; if it really is text, decompress it and name the decompressed file",
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
