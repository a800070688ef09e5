"""The hub: a thread of rank 0's agent that hears every rank, asks the roll for a verdict, and tells all.

One TCP connection a rank; all but the meeting are a few hundred bytes a second at 64 nodes.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from wikillm.supervise.roll import End, Roll
from wikillm.supervise.wire import Message, Wire

TICK = 0.25


class Hub(threading.Thread):
    """Serves until every rank has gone. `job` is what both sides must know: strangers on the port are sent away."""

    def __init__(self, listener: socket.socket, roll: Roll, job: str, interval: float) -> None:
        super().__init__(name="hub", daemon=True)
        self.roll, self.job, self.interval = roll, job, interval
        self._listener, self._wires = listener, selectors.DefaultSelector()
        self._rank_of: dict[Wire, int] = {}
        self._welcomed, self._said = False, 0.0
        self._end: End | None = None
        self._finished = threading.Event()

    def run(self) -> None:
        self._listener.setblocking(False)
        self._wires.register(self._listener, selectors.EVENT_READ)
        while not self._finished.is_set():
            for key, _ in self._wires.select(TICK):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(key.data)
            self._look()

    def wait(self, timeout: float, own: int) -> None:
        """Until every rank but our `own` has gone, at most so long."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and len(self._rank_of) > own:
            time.sleep(0.05)
        self._finished.set()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = Wire(sock)
        self._wires.register(sock, selectors.EVENT_READ, wire)

    def _hear(self, wire: Wire) -> None:
        now = time.monotonic()
        for message in wire.receive():
            try:
                self._take(wire, message, now)
            except (KeyError, TypeError, ValueError):
                wire.closed = True
        if wire.closed:
            rank = self._rank_of.pop(wire, None)
            if rank is not None and self._end is None:
                self.roll.died(rank, "its supervisor's connection was closed", now)
            self._drop(wire)

    def _drop(self, wire: Wire) -> None:
        with suppress(KeyError, ValueError):
            self._wires.unregister(wire.sock)
        wire.close()

    def _take(self, wire: Wire, message: Message, now: float) -> None:
        if "hello" in message:
            if message["job"] != self.job:
                wire.send({"stranger": True})
                wire.closed = True
                return
            rank = int(message["hello"])
            if rank in self.roll.ranks:
                raise ValueError("a rank that is here already")
            self._rank_of[wire] = rank
            self.roll.hello(rank, message["host"], message["address"], message["facts"], now)
            wire.send({"hub": True})
            return
        rank = self._rank_of[wire]
        if "beat" in message:
            self.roll.beat(rank, message, now)
        elif "bye" in message:
            self.roll.bye(rank, int(message["bye"]), message["reason"], now)
        elif "died" in message:
            self.roll.died(rank, message["died"], now)

    def _look(self) -> None:
        now = time.monotonic()
        if self._end is None:
            self._end = self.roll.verdict(now)
            if self._end is not None:
                self._tell({"end": self._end.code, "reason": self._end.reason})
        if self._end is None and not self._welcomed and self.roll.is_complete:
            self._welcomed = True
            hosts: dict[str, Any] = {}
            for rank, known in sorted(self.roll.ranks.items()):
                hosts.setdefault(known.host, [known.address, []])[1].append(rank)
            self._tell({"welcome": hosts})
        if now - self._said >= self.interval:
            self._said = now
            self._tell({"hub": True})

    def _tell(self, message: Message) -> None:
        for wire in list(self._rank_of):
            wire.send(message)
