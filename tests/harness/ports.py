"""Ports for runs that tests start: below those that the kernel gives to connections, so nothing else takes them."""

from __future__ import annotations

import itertools
import random
import socket

# Linux takes the ports of connections from 32768 on. A random start keeps parallel test processes apart.
_PORTS = range(20_000, 32_000, 2)
_OFFSETS = itertools.count(random.SystemRandom().randrange(len(_PORTS)))


def take_port() -> int:
    """A port P for a run: P and P + 1 (its coordinator's) can be bound, and this process never gets P again."""
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
