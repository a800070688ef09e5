"""Cut the items of a JSON array out of a stream of bytes, in constant memory.

A splitter turns pieces into items `(offset, payload, size)`; `payload` is None above `limit`, and such a record is never
held. It may be started at 0 or at the end of any earlier item. It only finds borders (60 MB/s on one core); the records
are parsed by the workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from wikillm.core.errors import DataError
from wikillm.data.sources.streams import BOM
from wikillm.data.types import Item

_BETWEEN = re.compile(rb"[\s,]*")
_STRUCTURE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


class ArraySplitter:
    """The items of one top-level JSON array, found by counting brackets outside strings.

    What is between two borders need not be valid JSON: a bad item is cut out whole and left to the parser.
    """

    def __init__(self, name: str, start: int, limit: int) -> None:
        self._name, self._limit = name, limit
        self._buffer, self._base, self._at = (
            b"",
            start,
            0,
        )  # buffer[0] is at offset `base`; `at` is scanned up to
        self._open = start > 0  # past the array's opening bracket
        self._closed = False
        self._item: int | None = None  # offset of the item being scanned
        self._depth = 0
        self._in_string = False

    def split(self, pieces: Iterator[bytes]) -> Iterator[Item]:
        for piece in pieces:
            self._buffer += piece
            while (item := self._next()) is not None:
                yield item
            self._forget()
        if not self._closed:
            raise DataError(
                "A JSON array is cut off: the file ends before its closing bracket.",
                got=f"{self._name}: {self._base + len(self._buffer)} bytes"
                + (
                    f", the last item starts at byte {self._item}" if self._item is not None else ""
                ),
                fix="download it again; JSON Lines (one record per line) can be used up to where it was cut",
            )

    def _next(self) -> Item | None:
        """The next complete item, or None when the buffer holds no more."""
        if self._item is None and not self._begin():
            return None
        buffer, at = self._buffer, self._at
        while at < len(buffer):
            if self._in_string:
                match = _IN_STRING.match(buffer, at)
                at = match.end() if match else at
                if (
                    at >= len(buffer) or buffer[at] != 0x22
                ):  # the end, or a backslash whose partner is not here yet
                    break
                self._in_string = False
                at += 1
                continue
            found = _STRUCTURE.search(buffer, at)
            if found is None:
                at = len(buffer)
                break
            at, mark = found.end(), found[0]
            if mark == b'"':
                self._in_string = True
            elif mark in b"[{":
                self._depth += 1
            elif mark in b"]}" and self._depth > 0:
                self._depth -= 1
                if self._depth == 0:
                    return self._finish(at)
            elif (
                mark in b"]," and self._depth == 0
            ):  # what follows a bare value: a comma or the array's own bracket
                return self._finish(at - 1)
        self._at = at
        return None

    def _begin(self) -> bool:
        """Go to the first byte of the next item; False when it is not in the buffer, or there is none."""
        if not self._open:
            if (
                self._base == 0
                and self._at == 0
                and BOM.startswith(self._buffer[:3])
                and len(self._buffer) < 3
            ):
                return False
            self._at = len(BOM) if self._base == 0 and self._buffer.startswith(BOM) else self._at
        match = _BETWEEN.match(self._buffer, self._at)
        self._at = match.end() if match else self._at
        if self._at >= len(self._buffer):
            return False
        byte = self._buffer[self._at : self._at + 1]
        if self._closed:
            raise DataError(
                "There is text after the end of a JSON array.",
                got=f"{self._name}, byte {self._base + self._at}: {self._buffer[self._at : self._at + 40]!r}",
                fix="keep one array in the file, or write JSON Lines",
            )
        if not self._open:
            if byte != b"[":
                raise DataError(
                    "This is not a JSON array.",
                    got=f"{self._name} starts with {self._buffer[self._at : self._at + 40]!r}",
                    fix="data.format=auto looks into the file",
                )
            self._open = True
            self._at += 1
            return self._begin()
        if byte == b"]":
            self._closed = True
            self._at += 1
            return self._begin()
        self._item, self._depth, self._in_string = self._base + self._at, 0, False
        return True

    def _finish(self, end: int) -> Item:
        assert self._item is not None, "an item ends only after it began"
        begin, size = self._item - self._base, self._base + end - self._item
        payload = self._buffer[begin:end] if begin >= 0 and size <= self._limit else None
        item = (self._item, payload, size)
        self._item, self._at = None, end
        return item

    def _forget(self) -> None:
        """Drop from the buffer what is not needed: all that was scanned, but the open item while it may be kept."""
        keep = self._at
        if self._item is not None and self._base + len(self._buffer) - self._item <= self._limit:
            keep = max(0, self._item - self._base)
        self._buffer, self._base, self._at = self._buffer[keep:], self._base + keep, self._at - keep


def split_array(pieces: Iterator[bytes], start: int, limit: int, name: str) -> Iterator[Item]:
    """The items of a JSON array. Raises DataError when the array does not end, or something follows it."""
    return ArraySplitter(name, start, limit).split(pieces)
