"""Text of others on its way to a terminal: control characters are shown, not sent.

A document, a file name, a peer's message or a model may hold an escape sequence, which a terminal obeys: it clears the screen, sets
the title, writes the clipboard, or hides what follows. Such characters appear as their JSON escape (`\\u001b`), which is why output
that is JSON still means the same to a program. Letters, hanzi, emoji, tabs and line breaks stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TextIO

# C0 without tab and line feed, DEL, C1, the overrides, embeddings and isolates of bidirectional text, lone surrogates
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with its control characters as escapes; `\\r\\n` counts as a line break."""
    if _CONTROL.search(text) is None:
        return text
    return _CONTROL.sub(_escape, text.replace("\r\n", "\n"))


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


class PrintableStream:
    """A text stream that writes `printable` text.

    Args:
        stream: where it goes.
        returns: a text may begin or end with a carriage return, as progress lines of libraries do.
    """

    def __init__(self, stream: TextIO, *, returns: bool = False) -> None:
        self.wrapped = stream
        self._returns = returns

    def write(self, text: str) -> int:
        before = after = ""
        inner = text
        if self._returns and text.startswith("\r"):
            before, inner = "\r", inner[1:]
        if self._returns and inner.endswith("\r"):
            after, inner = "\r", inner[:-1]
        self.wrapped.write(before + printable(inner) + after)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)
