"""Cut the items of a JSON array out of a stream of bytes, in constant memory.

A splitter turns pieces of a stream into items `(offset, payload, size)`. A record longer than
`limit` gets the payload None, and is never kept in memory. A splitter may start at 0 or at the end
of any earlier item. It only finds borders (60 MB/s on one core); the workers parse the records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from wikillm.core.errors import DataError
from wikillm.data.sources.decompress import BOM
from wikillm.data.types import Item

_BETWEEN = re.compile(rb"[\s,]*+")
_STRUCTURE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


def split_array(pieces: Iterator[bytes], start: int, limit: int, name: str) -> Iterator[Item]:
    """The items of a JSON array. Raises DataError if the array is cut off or text follows it."""
    return _ArraySplitter(name, start, limit).split(pieces)


class _ArraySplitter:
    """The items of one top-level JSON array, found by counting brackets outside strings.

    An item need not be valid JSON: a bad item is cut out whole, and the worker that parses it
    reports the error.
    """

    def __init__(self, name: str, start: int, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._buffer = b""
        self._base = start  # offset of buffer[0]
        self._at = 0  # index in the buffer of the next byte to scan
        self._open = start > 0  # whether the opening bracket of the array was read
        self._closed = False  # whether its closing bracket was read
        self._item: int | None = None  # offset of the item being scanned
        self._depth = 0  # of brackets in the item
        self._in_string = False

    def split(self, pieces: Iterator[bytes]) -> Iterator[Item]:
        for piece in pieces:
            self._buffer += piece
            while (item := self._next()) is not None:
                yield item
            self._forget()
        if not self._closed:
            last = "" if self._item is None else f", the last item starts at byte {self._item}"
            raise DataError(
                "A JSON array is cut off: the file ends before its closing bracket.",
                got=f"{self._name}: {self._base + len(self._buffer)} bytes{last}",
                fix="download it again; JSON Lines (one record per line) can be used up to the cut",
            )

    def _next(self) -> Item | None:
        """The next complete item, or None when the buffer holds no more."""
        if self._item is None and not self._begin():
            return None
        buffer = self._buffer
        at = self._at
        while at < len(buffer):
            if self._in_string:
                match = _IN_STRING.match(buffer, at)
                at = match.end() if match else at
                # The buffer ends here, or after a backslash whose next byte is not read yet.
                if at >= len(buffer) or buffer[at] != 0x22:
                    break
                self._in_string = False
                at += 1
                continue
            found = _STRUCTURE.search(buffer, at)
            if found is None:
                at = len(buffer)
                break
            at = found.end()
            mark = found[0]
            if mark == b'"':
                self._in_string = True
            elif mark in b"[{":
                self._depth += 1
            elif mark in b"]}" and self._depth > 0:
                self._depth -= 1
                if self._depth == 0:
                    return self._finish(at)
            elif mark in b"]," and self._depth == 0:  # the end of a number, a string or a word
                return self._finish(at - 1)
        self._at = at
        return None

    def _begin(self) -> bool:
        """Go to the first byte of the next item; False when the buffer holds none."""
        if not self._open and self._base == 0 and self._at == 0:
            if len(self._buffer) < len(BOM) and BOM.startswith(self._buffer):
                return False
            if self._buffer.startswith(BOM):
                self._at = len(BOM)
        while True:
            match = _BETWEEN.match(self._buffer, self._at)
            self._at = match.end() if match else self._at
            if self._at >= len(self._buffer):
                return False
            byte = self._buffer[self._at : self._at + 1]
            if self._closed:
                raise DataError(
                    "There is text after the end of a JSON array.",
                    got=f"{self._name}, byte {self._base + self._at}: {self._shown()}",
                    fix="keep one array in the file, or write JSON Lines",
                )
            if not self._open and byte != b"[":
                raise DataError(
                    "This is not a JSON array.",
                    got=f"{self._name} starts with {self._shown()}",
                    fix="data.format=auto looks into the file",
                )
            if self._open and byte != b"]":
                self._item = self._base + self._at
                self._depth = 0
                self._in_string = False
                return True
            # This bracket opens or closes the array.
            self._closed = self._open
            self._open = True
            self._at += 1

    def _shown(self) -> str:
        return repr(self._buffer[self._at : self._at + 40])

    def _finish(self, end: int) -> Item:
        assert self._item is not None, "an item ends only after it began"
        begin = self._item - self._base
        size = end - begin
        payload = self._buffer[begin:end] if begin >= 0 and size <= self._limit else None
        item = (self._item, payload, size)
        self._item = None
        self._at = end
        return item

    def _forget(self) -> None:
        """Drop scanned bytes from the buffer, except those of an open item within the limit."""
        keep = self._at
        if self._item is not None and self._base + len(self._buffer) - self._item <= self._limit:
            keep = max(0, self._item - self._base)
        self._buffer = self._buffer[keep:]
        self._base += keep
        self._at -= keep
