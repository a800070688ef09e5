"""Read the bytes of a source: decompressed, as UTF-8, from any offset, in pieces of about 1 MiB.

gz, bz2 and xz are decompressed stream by stream, since Python's file objects take a damaged later
stream of a bz2 file for harmless trailing bytes. zst is read with Arrow, which `datasets` requires.
A piece is at most twice `PIECE_BYTES` long, however well the file is compressed, and decompression
bombs are refused. A plain file is read from the offset on; any other file is decompressed or
transcoded from its start.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.sources.decompress_bz2 import decompress_in_threads
from wikillm.data.sources.fixes import quoted
from wikillm.data.types import SourceFile

BOM = codecs.BOM_UTF8
PIECE_BYTES = 1 << 20
TYPICAL_RATIO = {"none": 1.0, "gz": 3.0, "bz2": 4.0, "xz": 4.5, "zst": 3.7}
"""Decompressed bytes per byte on disk, for estimates. Dumps and Chinese JSON: 2.8-4.5."""
BOMB_BYTES = 1 << 28
BOMB_RATIO = 200
"""A file whose output exceeds both BOMB_BYTES and BOMB_RATIO times its input is refused; text
expands less than 20 times."""
_XZ_MEMORY = 1 << 29  # bytes; `xz -9` needs 65 MiB, a hostile header may demand 4 GiB
_WITH_MORE_MEMORY = {"xz": "xz -dk", "zst": "zstd -d --long=31"}
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
        threads: number of threads that decompress a bz2 file of several streams.

    Raises DataError when a compressed file is cut off or damaged, or a transcoded file does not
    decode; the error says how many bytes or characters could be read.
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
    """The first `size` decompressed bytes, or all if there are fewer, not transcoded."""
    raw = SourceFile(source.path, source.size, source.format, source.compression)
    found = b""
    for piece in pieces(raw):
        found += piece
        if len(found) >= size:
            break
    return found[:size]


def file_and_line(source: SourceFile, offset: int) -> str:
    """`FILE:LINE` of an offset, for a message; reads the file up to the offset."""
    line = 1
    remaining = offset
    for piece in pieces(source):
        line += piece.count(b"\n", 0, remaining)
        remaining -= len(piece)
        if remaining <= 0:
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
        output = _zstandard(file)
    else:
        serial = partial(streams, source.compression)
        output = serial(file)
        if source.compression == "bz2" and threads > 1:
            output = chain(decompress_in_threads(file, threads, serial), output)
    produced = 0  # decompressed bytes
    reported = 0  # compressed bytes for which `on_read` was called
    try:
        for piece in output:
            read = max(reported, file.tell())  # the bytes of a failed thread are read again
            on_read(read - reported)
            reported = read
            produced += len(piece)
            if produced > max(BOMB_BYTES, BOMB_RATIO * read):
                raise _bomb(source, produced, read)
            yield piece
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(source, produced, f"{error}") from None
    on_read(source.size - reported)


def streams(compression: str, file: BinaryIO) -> Iterator[bytes]:
    """The output of all streams of a gz, bz2 or xz file, one after the other.

    Raises EOFError for a file that is cut off, and the errors of the libraries for a damaged file;
    zlib checks the CRC and the length of gz.
    """
    unit = _decompressor(compression)
    is_fresh = True  # whether `unit` has not received any bytes
    while raw := file.read(PIECE_BYTES // 4):
        has_more = False  # whether `unit` holds output that was not taken yet
        while raw or has_more:
            # Zeros may follow a stream, as padding.
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
    """A decompressor for one stream; its `decompress` returns a bounded number of bytes."""
    if compression == "gz":
        return zlib.decompressobj(wbits=31)
    if compression == "bz2":
        return bz2.BZ2Decompressor()
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _zstandard(file: BinaryIO) -> Iterator[bytes]:
    """All frames of a zst file. Arrow raises OSError for a damaged or cut-off frame."""
    import pyarrow

    stream = pyarrow.CompressedInputStream(file, "zstd")
    while piece := stream.read(PIECE_BYTES // 4):
        yield piece


def _damaged(source: SourceFile, produced: int, why: str) -> DataError:
    if "emory" in why and source.compression in _WITH_MORE_MEMORY:  # both libraries say it so
        command = f"{_WITH_MORE_MEMORY[source.compression]} {quoted(source.path)}"
        return DataError(
            f"A {source.compression} file takes too much memory to decompress.",
            got=f"{source.path} ({format_size(source.size)}): {why}",
            fix=f"decompress it, and name the new file in data.path: {command}",
        )
    return DataError(
        f"A {source.compression} file is damaged or cut off.",
        got=f"{source.path} ({format_size(source.size)}): {why}\n"
        f"{produced} bytes could be decompressed before that",
        fix="download it again, and compare its checksum "
        f"({_TEST_COMMANDS[source.compression]} tests it)",
    )


def _bomb(source: SourceFile, produced: int, read: int) -> DataError:
    return DataError(
        f"A {source.compression} file expands more than text does: over {BOMB_RATIO} times.",
        got=f"{source.path}: {format_size(produced)} came out of its first {format_size(read)}",
        fix="look at its content; if it really is text, decompress it and name the new file",
    )


def _transcoded(source: SourceFile, stream: Iterator[bytes]) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(source.encoding)("strict")
    decoded = 0
    try:
        for piece in stream:
            if text := decoder.decode(piece):
                decoded += len(text)
                yield text.encode()
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise DataError(
            f"A file declared as {source.encoding} does not decode.",
            got=f"{source.path}: {error}, after {decoded} characters",
            fix="download it again, or convert it to UTF-8 with iconv",
        ) from None
