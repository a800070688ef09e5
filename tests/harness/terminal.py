"""A pseudo-terminal for tests: what a program writes to it, and a program that trains on one."""

from __future__ import annotations

import os
import pty
import struct
import termios
import threading
import time
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

    def send(self, text: str) -> None:
        """Type `text`, control characters included."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str, count: int = 1, timeout: float = 120.0) -> None:
        """Wait until `text` has been written `count` times."""
        deadline = time.monotonic() + timeout
        while self.text.count(text) < count:
            assert time.monotonic() < deadline, f"no {text!r} on the terminal:\n{self.text}"
            time.sleep(0.01)

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


def command_on_terminal(words: list[str], path: str) -> int:
    """Run a command of WikiLLM with the terminal at `path` as its own; returns the exit code."""
    import signal
    import sys

    from wikillm.cli.main import main

    os.setsid()
    # As a shell starts a program: tests in the background inherit that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    device = os.open(path, os.O_RDWR)
    ioctl(device, termios.TIOCSCTTY, 0)  # control characters now become signals
    for descriptor in range(3):
        os.dup2(device, descriptor)
    os.environ["TERM"] = "dumb"
    with open(0, closefd=False) as given, open(1, "w", closefd=False) as out:
        sys.stdin, sys.stdout, sys.stderr = given, out, out
        return main(words)
