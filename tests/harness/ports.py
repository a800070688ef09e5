"""Ports for test runs, below the kernel's range for outgoing connections to avoid conflicts."""

from __future__ import annotations

import itertools
import random
import socket

# Linux assigns connections ports from 32768. A random start separates parallel test processes.
_PORTS = range(20_000, 32_000, 2)
_OFFSETS = itertools.count(random.SystemRandom().randrange(len(_PORTS)))


def take_port() -> int:
    """Return a new port P for a run. P and P + 1 (for the coordinator) are free."""
    for offset in itertools.islice(_OFFSETS, len(_PORTS)):
        port = _PORTS[offset % len(_PORTS)]
        if _is_free(port) and _is_free(port + 1):
            return port
    raise OSError("no free port for a test")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
