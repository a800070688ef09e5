"""Escape control characters in foreign text before it reaches a terminal.

A document, a file name, a peer's message or a model's output can contain escape sequences, which
clear the screen, set the title, write to the clipboard or hide text. Control characters are printed
as JSON escapes (`\\u001b`), so JSON output keeps its meaning. Letters, hanzi, emoji, tabs and line
breaks are not changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TextIO

# C0 without tab and line feed, DEL, C1, overrides, embeddings and isolates of bidirectional text,
# lone surrogates
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with its control characters escaped; `\\r\\n` becomes a line break."""
    if _CONTROL.search(text) is None:
        return text
    text = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def is_utf8(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8. A file name with other bytes cannot."""
    return text.encode(errors="ignore").decode() == text


class PrintableStream:
    """A text stream that writes every text through `printable`.

    Args:
        keeps_returns: keep a carriage return at the beginning or end of a text, as in the progress
            lines of libraries.
    """

    def __init__(self, stream: TextIO, *, keeps_returns: bool = False) -> None:
        self.wrapped = stream
        self._keeps_returns = keeps_returns

    def write(self, text: str) -> int:
        inner = text
        before = after = ""
        if self._keeps_returns:
            inner = text.strip("\r")
            before = "\r" if text.startswith("\r") else ""
            after = "\r" if inner and text.endswith("\r") else ""
        self.wrapped.write(before + printable(inner) + after)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)
