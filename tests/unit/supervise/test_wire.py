"""The coordinator's port: it accepts messages from holders of the run's secret only."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from wikillm.core.errors import MachineError
from wikillm.supervise import coordinator as coordinator_module
from wikillm.supervise import membership as membership_module
from wikillm.supervise.coordinator import Coordinator
from wikillm.supervise.membership import Limits, Membership
from wikillm.supervise.network import listen
from wikillm.supervise.wire import MAX_BYTES, MAX_BYTES_UNPROVEN, Message, SealedWire, Wire

SECRET = bytes(range(32))
CONTEXT = "run\x0029500\x002"
HELLO = {"host": "node1", "address": "10.0.0.1", "facts": {"python": "3.11"}}
BEAT = {"beat": 0, "phase": "step", "step": 7, "standing": 0.5, "limit": 120.0, "median": 0.25}
BAD_LINES = {
    "nested arrays": b"[" * 100_000,
    "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "Infinity": b'{"nonce": Infinity}',
    "NaN": b'{"nonce": NaN}',
    "a number beyond floats": b'{"nonce": 1e999}',
    "a number of many digits": b'{"nonce": ' + b"9" * 6000 + b"}",
    "no object": b"[1, 2]",
    "no JSON": b"GET / HTTP/1.1\r",
    "no UTF-8": b'{"nonce": "\xff\xfe"}',
    "NUL": b"\0" * 100,
    "empty": b"",
    "wrong nonce": b'{"nonce": 7}',
    "short nonce": b'{"nonce": "abc"}',
    "end": b'{"end": 0, "reason": "x"}',
    "hello without a MAC": json.dumps({"hello": 1, **HELLO}).encode(),
}


def until(condition: Callable[[], Any], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def pair(theirs: bytes = SECRET, context: str = CONTEXT) -> tuple[SealedWire, SealedWire]:
    one, other = socket.socketpair()
    return SealedWire(one, SECRET, CONTEXT, is_coordinator=True), SealedWire(
        other, theirs, context, is_coordinator=False
    )


def exchange(*wires: SealedWire) -> list[list[Message]]:
    """Wait until messages on their way have arrived."""
    found: list[list[Message]] = [[] for _ in wires]
    for _ in range(4):
        for wire, received in zip(wires, found, strict=True):
            received += wire.receive()
    return found


class Served:
    """A coordinator of two ranks on loopback."""

    def __init__(self) -> None:
        self.membership = Membership(
            2, 2, Limits(rendezvous=60, lost=60, stall=60, leave=60), time.monotonic()
        )
        self.listener = listen(29600, "127.0.0.1", "127.0.0.1")
        self.coordinator = Coordinator(
            self.listener, self.membership, SECRET, CONTEXT, interval=0.1
        )
        self.coordinator.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), timeout=10)

    def agent(self, rank: object = 0, secret: bytes = SECRET) -> SealedWire:
        wire = SealedWire(self.connect(), secret, CONTEXT, is_coordinator=False)
        wire.send({"hello": rank, **HELLO})
        select.select([wire], [], [], 10)
        wire.receive()  # the coordinator's nonce: now the greeting is on its way
        return wire

    def receives(self, wire: SealedWire, word: str) -> Message | None:
        """The next message with this key; None when the coordinator closes the connection."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not wire.closed:
            select.select([wire], [], [], 0.1)
            for message in wire.receive():
                if word in message:
                    return message
        return None


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(coordinator_module, "TICK", 0.02)
    monkeypatch.setattr(membership_module, "DIED_WAITS", 0.1)
    made = Served()
    yield made
    made.coordinator.wait(0.0, own=0)
    made.coordinator.join(10)
    made.listener.close()


def closes(sock: socket.socket) -> bool:
    """The other side ends the connection, within 10 s."""
    sock.settimeout(10)
    with suppress(ConnectionResetError, BrokenPipeError):
        while sock.recv(65536):
            pass
    return True


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_ends_its_own_connection_and_no_other(served: Served, line: bytes) -> None:
    good = served.agent(0)
    assert served.receives(good, "hub")
    with served.connect() as stranger:
        with suppress(OSError):
            stranger.sendall(line + b"\n")
        assert closes(stranger)
    assert served.receives(good, "hub"), "the rank that was connected is still served"
    other = served.agent(1)
    assert served.receives(other, "welcome"), "and others may come"


@pytest.mark.parametrize(
    "message",
    [
        {"hello": 1, **HELLO, "facts": None},
        {"hello": True, **HELLO},
        {"hello": "1", **HELLO},
        {"hello": -1, **HELLO},
        {"hello": 2, **HELLO},
        {"hello": 0, **HELLO},  # is there already
        {"hello": [[]], **HELLO},
        {"hello": 1, "host": 5, "address": "x", "facts": {}},
        {"hello": 1, "host": "x" * 20_000, "address": "x", "facts": {}},
        {"beat": 0},
        {"bye": 0, "reason": None},
        {},
    ],
    ids=str,
)
def test_a_wrong_message_of_a_peer_that_knows_the_secret_ends_its_connection(
    served: Served, message: Message
) -> None:
    good = served.agent(0)
    assert served.receives(good, "hub")
    wire = SealedWire(served.connect(), SECRET, CONTEXT, is_coordinator=False)
    wire.send(message)
    wire.send({"beat": "x"})
    assert until(lambda: wire.receive() is not None and wire.closed)
    assert served.receives(good, "hub") and sorted(served.membership.ranks) == [0]
    assert served.coordinator.is_alive()


@pytest.mark.parametrize(
    "change",
    [
        {"step": "7"},
        {"step": 1 << 70},
        {"standing": "long"},
        {"standing": -1.0},
        {"standing": 10**400},
        {"limit": []},
        {"median": {}},
        {"phase": None},
    ],
    ids=str,
)
def test_a_wrong_beat_ends_its_rank_and_not_the_coordinator(
    served: Served, change: Message
) -> None:
    first, second = served.agent(0), served.agent(1)
    assert served.receives(first, "welcome") and served.receives(second, "welcome")
    second.send({**BEAT, **change})
    said = served.receives(first, "end")
    assert said is not None and "rank 1" in said["reason"] and said["end"] == 3


def test_a_valid_beat_is_accepted(served: Served) -> None:
    wire = served.agent(0)
    wire.send(BEAT)
    assert until(lambda: served.membership.ranks and served.membership.ranks[0].step == 7)
    assert served.membership.ranks[0].limit == 120.0 and served.membership.ranks[0].phase == "step"


def test_unproven_connections_are_few_and_short(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred silent or slow peers are closed in time, and a rank can still join between them."""
    monkeypatch.setattr(coordinator_module, "PROVE_SECONDS", 1.0)
    strangers = [served.connect() for _ in range(100)]
    assert until(lambda: len(served.coordinator._unproven) <= coordinator_module.MAX_UNPROVEN + 2)
    good = served.agent(0)
    assert served.receives(good, "hub")
    slow = served.connect()
    with pytest.raises(OSError):
        for _ in range(300):
            slow.sendall(b"{")
            time.sleep(0.02)
    assert all(closes(stranger) for stranger in strangers)
    assert served.receives(good, "hub") and not served.coordinator._unproven
    for sock in (*strangers, slow):
        sock.close()


def test_a_peer_with_another_secret_is_refused_and_named(served: Served) -> None:
    wire = served.agent(0, secret=b"x" * 32)
    assert served.receives(wire, "hub") is None and wire.closed
    assert wire.has_answered and not wire.is_proven
    assert not served.membership.ranks and served.membership.refused == {"127.0.0.1"}
    end = served.membership.verdict(time.monotonic() + 61)
    assert end is not None and "127.0.0.1 was refused, with a different secret" in end.reason


def test_only_the_chosen_address_listens() -> None:
    with listen(29600, "127.0.0.1", "127.0.0.1") as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", sock.getsockname()[1]), timeout=5)
    # where agents look, unless it is not an address of this machine (192.0.2.1, RFC 5737)
    for master, chosen in (("127.0.1.1", "127.0.1.1"), ("192.0.2.1", "127.0.0.1")):
        with listen(29600, master, "127.0.0.1") as sock:
            assert sock.getsockname()[0] == chosen
    with pytest.raises(MachineError, match="No port is free"):
        listen(65535, "127.0.0.1", "127.0.0.1")


def test_what_a_peer_sent_before_it_closed_is_read_after_a_failed_send() -> None:
    one, other = pair()
    exchange(one, other)
    other.send({"died": "was killed by signal 9"})
    other.close()
    for _ in range(3):
        one.send({"hub": True})
    assert one.receive() == [{"died": "was killed by signal 9"}]
    assert one.closed


def test_both_sides_receive_messages_in_order() -> None:
    coordinator, agent = pair()
    agent.send({"hello": 0})
    agent.send({"number": 1})
    coordinator.send({"hub": True})
    to_coordinator, to_agent = exchange(coordinator, agent)
    assert to_coordinator == [{"hello": 0}, {"number": 1}] and to_agent == [{"hub": True}]
    assert coordinator.is_proven and agent.is_proven and not coordinator.closed and not agent.closed


@pytest.mark.parametrize("secret, context", [(b"y" * 32, CONTEXT), (SECRET, "another run")])
@pytest.mark.parametrize("sender", [0, 1])
def test_another_secret_or_run_is_refused_by_both_sides(
    sender: int, secret: bytes, context: str
) -> None:
    wires = pair(secret, context)
    wires[sender].send({"end": 0, "reason": "believe me"})
    received = exchange(*wires)[1 - sender]
    receiver = wires[1 - sender]
    assert received == [] and receiver.closed and receiver.is_refused and not receiver.is_proven


class Middle:
    """A man in the middle, who chooses the lines that the coordinator's end receives."""

    def __init__(self) -> None:
        a, self.socket = socket.socketpair()
        to_agent, b = socket.socketpair()
        self.coordinator = SealedWire(a, SECRET, CONTEXT, is_coordinator=True)
        agent = SealedWire(b, SECRET, CONTEXT, is_coordinator=False)
        for number in range(3):
            agent.send({"number": number})
        to_agent.sendall(self.socket.recv(65536))  # the coordinator's nonce
        agent.receive()
        nonce, *self.lines = to_agent.recv(65536).splitlines(keepends=True)
        self.feed([nonce])

    def feed(self, lines: list[bytes]) -> list[Message]:
        self.socket.sendall(b"".join(lines))
        return self.coordinator.receive()


def test_repeated_reordered_changed_and_reflected_messages_are_refused() -> None:
    middle = Middle()
    assert middle.feed(middle.lines) == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert middle.feed(middle.lines[2:]) == [] and middle.coordinator.closed, "repeated"
    middle = Middle()
    assert middle.feed(middle.lines[:1]) == [{"number": 0}]
    assert middle.feed(middle.lines[2:]) == [] and middle.coordinator.closed, "one left out"
    attacks: dict[str, Callable[[Middle], list[bytes]]] = {
        "reordered": lambda m: [m.lines[1], m.lines[0]],
        "changed": lambda m: [m.lines[0].replace(b"0}", b"9}")],
        "from another connection": lambda m: Middle().lines,
        "reflected": lambda m: [m.socket.recv(65536)],
    }
    for name, attack in attacks.items():
        middle = Middle()
        middle.coordinator.send({"number": 0})
        assert middle.feed(attack(middle)) == [] and middle.coordinator.closed, name


def test_a_peer_that_sends_the_own_nonce_back_is_refused() -> None:
    ours, theirs = socket.socketpair()
    wire = SealedWire(ours, SECRET, CONTEXT, is_coordinator=True)
    theirs.sendall(theirs.recv(65536))
    assert wire.receive() == [] and wire.closed


@pytest.mark.parametrize("sealed", [False, True])
def test_an_endless_line_is_bounded(sealed: bool) -> None:
    ours, theirs = socket.socketpair()
    wire = SealedWire(ours, SECRET, CONTEXT, is_coordinator=True) if sealed else Wire(ours)
    limit = MAX_BYTES_UNPROVEN if sealed else MAX_BYTES
    theirs.setblocking(False)
    sent = 0
    while not wire.closed and sent < 4 * MAX_BYTES:
        with suppress(BlockingIOError, BrokenPipeError):
            sent += theirs.send(b"x" * 65536)
        wire.receive()
    assert wire.closed and len(wire._incoming) <= limit + 65536
