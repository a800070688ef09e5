"""Progress of a long preparation: documents, MB/s, tokens/s, time left.

On a terminal, one line is rewritten about every second; elsewhere, a line is printed every ten
seconds. The newest line is also written to a small file, from which rank 0 shows it when another
process does the work.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wikillm.core.log import say
from wikillm.core.units import format_count, format_seconds

_TERMINAL_SECONDS = 1.0
_PLAIN_SECONDS = 10.0
_RELAY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """The work done since the last report."""

    source_bytes: int = 0
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0


Report = Callable[[Work], None]


class Progress:
    """Adds up the reported work, and shows it.

    Args:
        what: name of the work, at the start of the line.
        total: estimated size of the sources in decompressed bytes.
        share: returns the share of the sources that was read, 0 to 1; for compressed files it is
            more exact than the bytes divided by `total`.
        relay: file to which the newest line is written, for other processes.
    """

    def __init__(
        self,
        what: str,
        total: int,
        share: Callable[[], float] | None = None,
        relay: Path | None = None,
    ) -> None:
        self._what = what
        self._total = max(1, total)
        self._share = share
        self._relay = relay
        self._start = self._shown = self._relayed = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._is_line_open = False
        self.source_bytes = self.documents = self.text_bytes = self.tokens = 0

    def add(self, work: Work) -> None:
        self.source_bytes += work.source_bytes
        self.documents += work.documents
        self.text_bytes += work.text_bytes
        self.tokens += work.tokens
        self.tick()

    def tick(self) -> None:
        """Show the line when it is due."""
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_SECONDS if self._is_terminal else _PLAIN_SECONDS):
            self._shown = now
            self._show()
        if self._relay is not None and now - self._relayed >= _RELAY_SECONDS:
            self._relayed = now
            with suppress(OSError):
                self._relay.write_text(self.line())

    def finish(self) -> None:
        """Show the last state, end the terminal's line, remove the relay file."""
        if self._is_line_open:
            self._show()
            say()
            self._is_line_open = False
        if self._relay is not None:
            self._relay.unlink(missing_ok=True)

    def line(self) -> str:
        seconds = max(1e-3, time.monotonic() - self._start)
        share = self._share() if self._share is not None else self.source_bytes / self._total
        done = min(1.0, share)
        parts = [f"{self._what}: {done:4.0%}"]
        if self.documents:
            parts.append(f"{self.documents:,} documents")
        if self.source_bytes:
            parts.append(f"{self.source_bytes / seconds / 1e6:.1f} MB/s")
        if self.tokens:
            parts.append(f"{format_count(self.tokens / seconds)} tokens/s")
        if 0.01 < done < 1 and seconds > 2:
            parts.append(f"{format_seconds(seconds * (1 - done) / done)} left")
        return "  ".join(parts)

    def _show(self) -> None:
        if self._is_terminal:
            say(f"{self.line():<79}", end="\r")
            self._is_line_open = True
        else:
            say(self.line())
