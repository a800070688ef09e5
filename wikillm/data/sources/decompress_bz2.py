"""Decompress the streams of a bz2 file in threads, in order (`multistream` dumps, pbzip2, lbzip2).

A stream starts with ten known bytes, so borders are found without decompressing; the decompressor
releases the interpreter's lock. The caller continues serially at bytes that do not decompress by
themselves (damage, a false border, a bomb), and at a stream longer than `MAX_STREAM`. So the output
and the errors equal those of serial reading. Each thread takes about 4 MiB of memory.
"""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_MAGIC_BYTES = 10
CHUNK = 512 << 10  # compressed bytes per task, at least
MAX_STREAM = 8 << 20
_MAX_RATIO = 64  # decompressed to compressed bytes of a task; text stays below 20
Decompress = Callable[[BinaryIO], Iterator[bytes]]
"""Decompresses the streams of a file one after the other."""


def has_many_streams(path: Path) -> bool:
    """Whether a second stream begins in the first `MAX_STREAM` bytes."""
    with open(path, "rb") as file:
        return _STREAM.search(file.read(MAX_STREAM), 1) is not None


def decompress_in_threads(file: BinaryIO, threads: int, decompress: Decompress) -> Iterator[bytes]:
    """The pieces of `decompress` from the file's position on, up to what must be read serially.

    Afterwards the file's position is the start of the first stream not yet read, or the file's end.
    """
    tasks: deque[tuple[int, Future[list[bytes] | None]]] = deque()
    chunks = _chunks(file)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="bz2")
    done = file.tell()  # the end of the last chunk that was yielded
    submitted = done  # the end of the last chunk that was submitted
    try:
        while True:
            while len(tasks) < threads + 2 and (chunk := next(chunks, None)) is not None:
                submitted += len(chunk)
                tasks.append((submitted, pool.submit(_decompressed, chunk, decompress)))
            if not tasks:
                break
            end, task = tasks.popleft()
            pieces = task.result()
            if pieces is None:
                break
            yield from pieces
            done = end
        file.seek(done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """Chunks of whole streams, `CHUNK` bytes or more; stops at a stream above `MAX_STREAM`."""
    buffer = b""
    searched = CHUNK
    while True:
        found = _STREAM.search(buffer, searched)
        if found is not None:
            yield buffer[: found.start()]
            buffer = buffer[found.start() :]
            searched = CHUNK
            continue
        searched = max(CHUNK, len(buffer) - _MAGIC_BYTES)
        if len(buffer) > MAX_STREAM:
            return
        more = file.read(CHUNK)
        if not more:
            if buffer:
                yield buffer
            return
        buffer += more


def _decompressed(chunk: bytes, decompress: Decompress) -> list[bytes] | None:
    """The output of `chunk`; None if it is not whole streams, or expands more than text does."""
    found: list[bytes] = []
    remaining = _MAX_RATIO * max(len(chunk), CHUNK)
    try:
        for piece in decompress(io.BytesIO(chunk)):
            found.append(piece)
            remaining -= len(piece)
            if remaining < 0:
                return None
    except (OSError, EOFError, ValueError):
        return None
    return found
