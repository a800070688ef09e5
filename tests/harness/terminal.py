"""A pseudo-terminal for tests: what a program writes to it, and a program that trains on one."""

from __future__ import annotations

import os
import pty
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from typing import Any


class Terminal:
    """`path` is the device to write to; `text` is what was written so far."""

    def __init__(self, width: int = 100, height: int = 40) -> None:
        self._master, self.slave = pty.openpty()
        ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.path = os.ttyname(self.slave)
        self._data = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return self._data.decode(errors="replace")

    def close(self) -> None:
        """Wait until all that was written has been read."""
        os.close(self.slave)
        self._reader.join(timeout=30)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # the last writer has closed it
                return
            if not data:
                return
            self._data += data


@contextmanager
def terminal(**size: int) -> Iterator[Terminal]:
    found = Terminal(**size)
    try:
        yield found
    finally:
        found.close()


def train_on_terminal(words: list[str], path: str, term: str) -> dict[str, Any]:
    """Run `train` with the terminal at `path` as stdout and stderr."""
    import sys

    from wikillm.config.load import load
    from wikillm.core.log import make_output_safe
    from wikillm.train.run import pretrain

    os.environ.pop("CI", None)
    os.environ["TERM"] = term
    with open(path, "w", encoding="utf-8") as out:
        sys.stdout = out
        sys.stderr = out
        make_output_safe()
        pretrain(load(None, words))
    return {"code": 0, "message": ""}
