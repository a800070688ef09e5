"""The bytes of a source: decompressed, as UTF-8, from any offset, in pieces of about 1 MiB.

gz, bz2 and xz are driven stream by stream, since Python's file objects take a damaged later stream
of a bz2 file for harmless trailing bytes; zst is read by Arrow, which `datasets` brings. A piece
exceeds `PIECE_BYTES` by at most a factor of two, however well the file is compressed, and
decompression bombs are refused. Seeking is free in a plain file; in any other it decompresses up to
the offset.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.sources.decompress_bz2 import decompress_in_threads
from wikillm.data.types import SourceFile

BOM = codecs.BOM_UTF8
PIECE_BYTES = 1 << 20
TYPICAL_RATIO = {"none": 1.0, "gz": 3.0, "bz2": 4.0, "xz": 4.5, "zst": 3.7}
"""Decompressed bytes per byte on disk, for estimates. Dumps and Chinese JSON: 2.8-4.5."""
BOMB_BYTES = 1 << 28
BOMB_RATIO = 200
"""A file that gives more bytes and a higher ratio is refused; the ratio of text stays below 20."""
_XZ_MEMORY = 1 << 29  # `xz -9` needs 65 MiB; a header may ask for 4 GiB
_TEST_COMMANDS = {"gz": "gzip -t", "bz2": "bzip2 -t", "xz": "xz -t", "zst": "zstd -t"}


def pieces(
    source: SourceFile,
    start: int = 0,
    on_read: Callable[[int], None] | None = None,
    threads: int = 1,
) -> Iterator[bytes]:
    """The decompressed UTF-8 bytes of `source` from offset `start` on.

    Args:
        on_read: called with the number of bytes read from the disk.
        threads: that decompress the streams of a bz2 file.

    Raises DataError when a compressed file is cut off or damaged, or a transcoded one does not
    decode, with how far it could be read.
    """
    on_read = on_read or (lambda _: None)
    with open(source.path, "rb") as file:
        position = 0
        if source.compression == "none" and source.encoding == "utf-8":
            file.seek(start)
            position = start
        stream = _decompressed(source, file, on_read, threads)
        if source.encoding != "utf-8":
            stream = _transcoded(source, stream)
        for piece in stream:
            if position + len(piece) > start:
                yield piece[max(0, start - position) :]
            position += len(piece)


def head(source: SourceFile, size: int) -> bytes:
    """The first `size` decompressed bytes, fewer when there are fewer, not transcoded."""
    raw = SourceFile(source.path, source.size, source.format, source.compression)
    found = b""
    for piece in pieces(raw):
        found += piece
        if len(found) >= size:
            break
    return found[:size]


def file_and_line(source: SourceFile, offset: int) -> str:
    """`FILE:LINE` of an offset, for a message; reads the file up to there."""
    line = 1
    left = offset
    for piece in pieces(source):
        line += piece.count(b"\n", 0, left)
        left -= len(piece)
        if left <= 0:
            break
    return f"{source.path}:{line}"


def _decompressed(
    source: SourceFile, file: BinaryIO, on_read: Callable[[int], None], threads: int
) -> Iterator[bytes]:
    if source.compression == "none":
        while piece := file.read(PIECE_BYTES):
            on_read(len(piece))
            yield piece
        return
    if source.compression == "zst":
        streams = _zstandard(file)
    else:
        streams = _streams(source.compression, file, threads)
    given = reported = 0
    try:
        for piece in streams:
            read = max(reported, file.tell())  # data on which a thread failed is read again
            on_read(read - reported)
            reported = read
            given += len(piece)
            if given > max(BOMB_BYTES, BOMB_RATIO * read):
                raise _bomb(source, given, read)
            yield piece
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(source, given, f"{error}") from None
    on_read(source.size - reported)


def _streams(compression: str, file: BinaryIO, threads: int) -> Iterator[bytes]:
    """All streams of a gz, bz2 or xz file, one after the other. zlib checks CRC and length."""
    if compression == "bz2" and threads > 1:
        yield from decompress_in_threads(file, threads)
    unit = _decompressor(compression)
    is_fresh = True  # nothing was fed to `unit` yet
    while raw := file.read(PIECE_BYTES // 4):
        has_more = False  # `unit` holds output that was not taken yet
        while raw or has_more:
            # There may be zero padding between and after streams.
            if is_fresh and not (raw := raw.lstrip(b"\0")):
                break
            out = unit.decompress(raw, PIECE_BYTES)
            is_fresh = unit.eof
            if out:
                yield out
            if unit.eof:
                raw = unit.unused_data
                has_more = False
                unit = _decompressor(compression)
            elif compression == "gz":
                raw = unit.unconsumed_tail
                has_more = len(out) == PIECE_BYTES
            else:
                raw = b""
                has_more = not unit.needs_input
    if not is_fresh:
        raise EOFError("it ends in the middle of a compressed stream: an unfinished download?")


def _decompressor(compression: str) -> Any:
    """Of one stream: its `decompress` gives a bounded number of bytes."""
    if compression == "gz":
        return zlib.decompressobj(wbits=31)
    if compression == "bz2":
        return bz2.BZ2Decompressor()
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _zstandard(file: BinaryIO) -> Iterator[bytes]:
    """All frames of a zst file. Arrow raises OSError for damaged or cut ones."""
    import pyarrow

    stream = pyarrow.CompressedInputStream(file, "zstd")
    while piece := stream.read(PIECE_BYTES // 4):
        yield piece


def _damaged(source: SourceFile, given: int, why: str) -> DataError:
    return DataError(
        f"A {source.compression} file is damaged or cut off.",
        got=f"{source.path} ({format_size(source.size)}): {why}\n"
        f"{given} bytes could be decompressed before that",
        fix="download it again, and compare its checksum "
        f"({_TEST_COMMANDS[source.compression]} tests it)",
    )


def _bomb(source: SourceFile, given: int, read: int) -> DataError:
    return DataError(
        f"A {source.compression} file expands more than text does: {BOMB_RATIO} times and over.",
        got=f"{source.path}: {format_size(given)} came out of its first {format_size(read)}",
        fix="look at its content; if it really is text, decompress it and name the result",
    )


def _transcoded(source: SourceFile, stream: Iterator[bytes]) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(source.encoding)("strict")
    given = 0
    try:
        for piece in stream:
            if text := decoder.decode(piece):
                given += len(text)
                yield text.encode()
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise DataError(
            f"A file declared as {source.encoding} does not decode.",
            got=f"{source.path}: {error}, after {given} characters",
            fix="download it again, or convert it to UTF-8 with iconv",
        ) from None
