"""A thread in rank 0's agent that receives messages from all ranks and sends them the verdict.

The agent of each rank has one TCP connection. After the start, all connections together carry a few
hundred bytes per second on 64 nodes. Anyone who reaches the port can connect, so a peer has 5 s to
prove that it knows the run's secret, only a few connections of unproven peers are kept, and an
error closes only the connection on which it occurs.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from wikillm.core.errors import ExitCode
from wikillm.supervise.membership import End, Member, Membership
from wikillm.supervise.network import is_of_this_user
from wikillm.supervise.records import UNKNOWN_END, Process, end_of
from wikillm.supervise.wire import Message, SealedWire

TICK = 0.25
PROVE_SECONDS = 5.0
AGENT_GONE_SECONDS = 1.0
"""Seconds from the end of a local agent to the check of its rank: both may be killed together."""
SUSPENDED_SECONDS = 5.0
"""If more seconds pass between two checks, this process was suspended (Ctrl-Z, a scheduler)."""
MAX_UNPROVEN = 16
"""Connections of unproven peers that are kept, plus one for each rank that has not joined. The
oldest is closed first."""
_MAX_TEXT = 16384  # characters of a reason, a host name, a version
_CODES = frozenset(map(int, ExitCode))


class Coordinator(threading.Thread):
    """Serves until `wait` returns, because the other ranks have ended or its time is up.

    Args:
        secret, context: see `SealedWire`.
        interval: seconds between keep-alive messages.
    """

    def __init__(
        self,
        listener: socket.socket,
        membership: Membership,
        secret: bytes,
        context: str,
        interval: float,
    ) -> None:
        super().__init__(name="coordinator", daemon=True)
        self.membership = membership
        self.interval = interval
        self._secret = secret
        self._context = context
        self._listener = listener
        self._wires = selectors.DefaultSelector()
        self._rank_of: dict[SealedWire, int] = {}
        self._unproven: dict[SealedWire, tuple[float, str]] = {}  # time of connection, address
        self._processes: dict[int, Process] = {}  # by rank, if all ranks are on this machine
        self._agent_gone: dict[int, float] = {}  # local rank -> when its agent ended
        self._last_check = time.monotonic()
        self._has_welcomed = False  # the list of nodes was sent
        self._last_sent = 0.0
        self._end: End | None = None
        self._finished = threading.Event()

    def run(self) -> None:
        """Accept connections, receive messages and check the ranks, until `wait` has returned."""
        self._listener.setblocking(False)
        self._wires.register(self._listener, selectors.EVENT_READ)
        while not self._finished.is_set():
            for key, _ in self._wires.select(TICK):
                if key.fileobj is self._listener:
                    self._accept()
                elif not key.data.closed:
                    self._receive(key.data)
            self._check()

    def wait(self, timeout: float, own: int, *, for_verdict: bool = False) -> End | None:
        """Wait until only this agent's rank is connected, stop the thread, and return the verdict.

        Args:
            timeout: longest wait in seconds.
            own: number of connections of this agent's own rank, 0 or 1.
            for_verdict: also wait until there is a verdict.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and (
            len(self._rank_of) > own or (for_verdict and self._end is None)
        ):
            time.sleep(0.05)
        self._finished.set()
        return self._end

    def _accept(self) -> None:
        with suppress(OSError):
            sock, peer = self._listener.accept()
            if sock.family == socket.AF_UNIX and not is_of_this_user(sock):
                sock.close()
                return
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            absent = max(0, self.membership.world_size - len(self._rank_of))
            while len(self._unproven) >= MAX_UNPROVEN + absent:
                self._drop(next(iter(self._unproven)))
            wire = SealedWire(sock, self._secret, self._context, is_coordinator=True)
            if wire.closed:
                return
            self._unproven[wire] = (time.monotonic(), str(peer[0]) if peer else "this machine")
            self._wires.register(sock, selectors.EVENT_READ, wire)

    def _receive(self, wire: SealedWire) -> None:
        now = time.monotonic()
        try:
            for message in wire.receive():
                self._handle_message(wire, message, now)
        except Exception:  # a malformed message closes only its sender's connection
            wire.closed = True
        if wire.is_refused and wire in self._unproven:
            self.membership.refuse(self._unproven[wire][1])
        if wire.closed:
            self._drop(wire)

    def _drop(self, wire: SealedWire) -> None:
        """Close a connection. Its rank counts as dead; a rank on this machine is checked first."""
        self._unproven.pop(wire, None)
        rank = self._rank_of.pop(wire, None)
        if rank is not None and self._end is None:
            now = time.monotonic()
            if rank in self._processes:
                self._agent_gone[rank] = now
            else:
                self.membership.died(rank, "is gone: its supervisor's connection was closed", now)
        with suppress(KeyError, ValueError):
            self._wires.unregister(wire.sock)
        wire.close()

    def _handle_message(self, wire: SealedWire, message: Message, now: float) -> None:
        """Handle a peer's message. Raises ValueError, TypeError or KeyError if it is malformed."""
        if "hello" in message:
            self._welcome(wire, message, now)
            return
        rank = self._rank_of[wire]
        if "beat" in message:
            self.membership.beat(rank, _beat(message), now)
        elif "bye" in message:
            code = message["bye"] if message["bye"] in _CODES else int(ExitCode.BUG)
            is_agreed = message.get("agreed") is not False
            self.membership.bye(rank, code, _text(message["reason"]), now, is_agreed=is_agreed)
        elif "died" in message:
            is_known = message.get("known") is True
            self.membership.died(rank, _text(message["died"]), now, is_known=is_known)

    def _welcome(self, wire: SealedWire, message: Message, now: float) -> None:
        rank = _whole(message["hello"], self.membership.world_size - 1)
        if rank in self.membership.ranks or wire in self._rank_of or self._end is not None:
            raise ValueError("the rank has joined already, or the run has ended")
        pid = _whole(message.get("pid", 0), 1 << 31)
        versions = {_text(name): _text(value) for name, value in message["facts"].items()}
        host = _text(message["host"])
        self.membership.hello(rank, Member(host, _text(message["address"]), versions, now, pid=pid))
        if self._listener.family == socket.AF_UNIX and pid:
            with suppress(OSError, ValueError, IndexError):
                self._processes[rank] = Process.here(pid)
        self._unproven.pop(wire, None)
        self._rank_of[wire] = rank
        wire.send({"hub": True})

    def _check(self) -> None:
        now = time.monotonic()
        # While this thread was suspended it read no messages: that silence does not count.
        if now - self._last_check > SUSPENDED_SECONDS:
            self.membership.resumed_at = now
        self._last_check = now
        self._check_ranks_without_agent(now)
        overdue = [w for w, (since, _) in self._unproven.items() if now - since > PROVE_SECONDS]
        for wire in overdue:
            self._drop(wire)
        # Send the verdict once, or the list of nodes once all ranks have joined.
        if self._end is None:
            self._end = self.membership.verdict(now)
            if self._end is not None:
                reporter = self.membership.reporter()
                self._send_all({**self._end.to_message(), "speaker": reporter})
        if self._end is None and not self._has_welcomed and self.membership.is_complete:
            self._has_welcomed = True
            hosts: dict[str, Any] = {}
            for rank, member in sorted(self.membership.ranks.items()):
                hosts.setdefault(member.host, [member.address, []])[1].append(rank)
            self._send_all({"welcome": hosts})
        if now - self._last_sent >= self.interval:
            self._last_sent = now
            self._send_all({"hub": True})

    def _check_ranks_without_agent(self, now: float) -> None:
        """Forget a local rank that still runs without its agent; else report how it ended."""
        gone = [rank for rank, at in self._agent_gone.items() if now - at > AGENT_GONE_SECONDS]
        for rank in gone:
            del self._agent_gone[rank]
            process = self._processes[rank]
            if process.is_alive() and self.membership.ranks[rank].exited is None:
                self.membership.forget(rank)
            else:
                how = end_of(process.pid)
                self.membership.died(rank, how or UNKNOWN_END, now, is_known=how is not None)

    def _send_all(self, message: Message) -> None:
        for wire in list(self._rank_of):
            wire.send(message)
            if wire.closed:
                self._drop(wire)


def _whole(value: object, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError(f"not a whole number from 0 to {largest}")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e12:  # type: ignore[operator]
        raise ValueError("not a time")
    return float(value)  # type: ignore[arg-type]


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError("not a text of bounded length")
    return value.encode("utf-8", "replace").decode()


def _beat(message: Message) -> Message:
    """The checked values of a heartbeat."""
    limit = message["limit"]
    return {
        "phase": _text(message["phase"]),
        "step": _whole(message["step"], 1 << 62),
        "standing": _seconds(message["standing"]),
        "limit": None if limit is None else _seconds(limit),
        "median": _seconds(message["median"]),
    }
