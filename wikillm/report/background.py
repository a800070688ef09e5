"""Write RUN/report.html during training, in a separate process of low priority. (rank 0)

The training process does not wait for it, because reading the records of a long run takes seconds.
The first failure is a warning; later ones are silent.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from wikillm.core.child_environment import environment_with_wikillm
from wikillm.core.log import warn

REFRESH_SECONDS = 60.0
"""Shortest time between two refreshes; checkpoints in between start none."""
_LOW_PRIORITY = ("nice", "-n", "10")


class PageRefresh:
    """Starts processes that write the page, one at a time.

    Args:
        every: shortest time in seconds between two refreshes, and before the first.
    """

    def __init__(self, run: Path, every: float = REFRESH_SECONDS) -> None:
        self._run = run
        self._every = every
        self._last = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._has_warned = False

    def refresh(self) -> None:
        """Start writing the page, unless it was just written or is being written. Never raises."""
        if time.monotonic() - self._last < self._every or self._is_writing():
            return
        self._last = time.monotonic()
        try:
            self._process = subprocess.Popen(
                [*_LOW_PRIORITY, sys.executable, "-m", "wikillm", "report", str(self._run)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment_with_wikillm(),
            )
        except OSError as error:
            self._warn_once(str(error))

    def close(self) -> None:
        """Terminate a process that is still writing; the end of the run writes the last page."""
        if self._process is not None and self._is_writing():
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _is_writing(self) -> bool:
        code = None if self._process is None else self._process.poll()
        if code:
            self._warn_once(f"exit code {code}; `wikillm report {self._run}` shows the error")
        return self._process is not None and code is None

    def _warn_once(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(f"report.html was not refreshed: {reason}")
