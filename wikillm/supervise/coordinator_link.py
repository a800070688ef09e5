"""Connects an agent to the coordinator, exchanges messages, and detects a lost connection."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from wikillm.supervise.membership import OTHER_SECRET, Limits
from wikillm.supervise.network import PORTS_TRIED, connect_here
from wikillm.supervise.wire import Message, SealedWire

ANSWER_SECONDS = 3.0  # wait at a port for proof that the coordinator listens there
GONE_SECONDS = 3.0  # from a closed connection until rank 0 counts as lost


class CoordinatorLink:
    """The connection of one agent.

    Args:
        setup: the rank's first message, see `settings.agent_setup`.
        interval: seconds between keep-alive messages of the coordinator.
    """

    def __init__(self, setup: Message, limits: Limits, interval: float) -> None:
        self.wire: SealedWire | None = None
        self.accepted = False  # the coordinator has answered
        self._setup = setup
        self._limits = limits
        self._interval = interval
        self._host = str(setup["process"]["host"])
        self._secret = bytes.fromhex(setup["secret"])
        self._began = time.monotonic()
        self._last_received = self._began
        self._gone: float | None = None  # when the connection was closed
        self._attempt = 0
        self._answer_by = 0.0
        self._port = 0  # port of the latest attempt
        self._foreign_ports: set[int] = set()  # ports where a peer with another secret answered

    @property
    def is_local(self) -> bool:
        """Whether all ranks are on this machine: then there is no network or node to lose."""
        return self._setup["master_port"] is None

    def send(self, message: Message) -> None:
        if self.wire is not None:
            self.wire.send(message)

    def restart_silence(self) -> None:
        """Restart the silence timer after a suspension, when no message could be received."""
        self._last_received = time.monotonic()

    def find(self, now: float) -> str | None:
        """Try to connect to one port per call. Returns None, or a reason once the time is up."""
        if self.wire is not None and not self.wire.closed and now < self._answer_by:
            return None
        if not self.is_local and now - self._began > self._limits.rendezvous + 5.0:
            return self._no_answer()
        if self.wire is not None:
            self.wire.close()
            self.wire = None
        sock = self._connect()
        if sock is not None:
            setup = self._setup
            self.wire = SealedWire(sock, self._secret, setup["job"], is_coordinator=False)
            self._answer_by = now + ANSWER_SECONDS
            hello = {"hello": setup["rank"], "host": self._host, "pid": setup["pid"]}
            self.wire.send({**hello, "address": setup["address"], "facts": setup["versions"]})
        return None

    def receive(self) -> list[Message]:
        """Return the coordinator's messages, and note when the connection is closed."""
        wire = self.wire
        if wire is None:
            return []
        messages = wire.receive()
        if messages:
            self._last_received = time.monotonic()
        if any(key in message for message in messages for key in ("hub", "welcome", "end")):
            self.accepted = True
        if wire.closed:
            if wire.has_answered and not wire.is_proven:
                self._foreign_ports.add(self._port)
            wire.close()
            self.wire = None
            if self.accepted:
                self._gone = time.monotonic()
        return messages

    def why_lost(self, now: float) -> str | None:
        """Why rank 0's machine counts as lost, or None while the coordinator can be reached.

        Always None if all ranks are local: rank 0's agent reports the end of its rank, and without
        that agent the run continues unsupervised.
        """
        setup = self._setup
        where = f"rank 0 on the first node, {setup['master']} ({setup['master_address']})"
        silence = now - self._last_received
        if self.is_local:
            return None
        if self._gone is not None:
            is_late = now - self._gone > GONE_SECONDS
            return (
                f"The connection to {where} was closed: that process is gone." if is_late else None
            )
        if silence > self._limits.lost + self._interval:
            return (
                f"{self._host} reports: No heartbeat from {where} for {silence:.0f} s: "
                "the machine or the network between is down."
            )
        return None

    def _connect(self) -> socket.socket | None:
        """Try the next address where the coordinator may listen; None when nothing answers."""
        for _ in range(PORTS_TRIED if self.is_local else 1):
            number = self._attempt % PORTS_TRIED
            self._attempt += 1
            with suppress(OSError):
                if self.is_local:
                    return connect_here(self._setup["job"], number)
                self._port = int(self._setup["master_port"]) + 1 + number
                address = (self._setup["master_address"], self._port)
                sock = socket.create_connection(address, timeout=1.0)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        return None

    def _no_answer(self) -> str:
        first = int(self._setup["master_port"]) + 1
        ports = f"ports {first} to {first + PORTS_TRIED - 1}"
        where = f"{self._setup['master']} ({self._setup['master_address']}, {ports})"
        limit = f"{self._limits.rendezvous:.0f} s"
        reason = f"{self._host} got no answer from the first node, {where}, for {limit}."
        if self._foreign_ports:
            ports = ", ".join(map(str, sorted(self._foreign_ports)))
            reason += f"\n  A supervisor answered at port {ports}, {OTHER_SECRET}"
        return reason
