"""How far a long preparation is: documents, MB/s, tokens/s, time left.

On a terminal one line is rewritten about once a second; elsewhere a plain line comes every ten. The newest line
also goes to a small file, from which rank 0 takes it when another process does the work.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wikillm.core.log import say
from wikillm.core.units import format_count, format_seconds

_TERMINAL_SECONDS, _PLAIN_SECONDS, _RELAY_SECONDS = 1.0, 10.0, 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """What was done since the last report."""

    source_bytes: int = 0
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0


Report = Callable[[Work], None]


class Progress:
    """Counts work and shows it. `total` is the estimated size of the source in decompressed bytes.

    Args:
        what: what is being done, the start of the line.
        share: gives the part of the source that was read, 0 to 1; better than work / total for compressed files.
        relay: file that others read the newest line from.
    """

    def __init__(
        self,
        what: str,
        total: int,
        share: Callable[[], float] | None = None,
        relay: Path | None = None,
    ) -> None:
        self._what, self._total, self._share, self._relay = what, max(1, total), share, relay
        self._start = time.monotonic()
        self._shown = self._relayed = self._start
        self._terminal = sys.stdout.isatty()
        self._line_open = False
        self.source_bytes = self.documents = self.text_bytes = self.tokens = 0

    def add(self, work: Work) -> None:
        self.source_bytes += work.source_bytes
        self.documents += work.documents
        self.text_bytes += work.text_bytes
        self.tokens += work.tokens
        self.tick()

    def tick(self) -> None:
        """Show the line when it is time."""
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS):
            self._shown = now
            self._show()
        if self._relay is not None and now - self._relayed >= _RELAY_SECONDS:
            self._relayed = now
            with contextlib.suppress(OSError):
                self._relay.write_text(self.line())

    def finish(self) -> None:
        """Leave the terminal on a fresh line, the last state above it."""
        if self._line_open:
            self._show()
            say()
            self._line_open = False
        if self._relay is not None:
            self._relay.unlink(missing_ok=True)

    def line(self) -> str:
        seconds = max(1e-3, time.monotonic() - self._start)
        done = min(
            1.0, self._share() if self._share is not None else self.source_bytes / self._total
        )
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
        if self._terminal:
            say(f"{self.line():<79}", end="\r")
            self._line_open = True
        else:
            say(self.line())
