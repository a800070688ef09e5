"""Sends messages between ranks, agents and the coordinator, one JSON object of limited size a line.

`Wire` connects a rank and its agent by a socket pair. `SealedWire` connects an agent and the
coordinator: each message has a MAC that only a process with the run's secret can compute. Any other
text ends the connection. A message is recognized by its first key:

    rank -> agent          (setup), run, acknowledged, bye
    agent -> rank          welcome, end, noted
    agent -> coordinator   hello, beat, bye, died
    coordinator -> agent   hub (keep-alive), welcome, end

Keys and labels in the MAC keep old names ("hub" for the coordinator, "speaker" for the reporter,
"facts" for the versions on a node), so that nodes with different versions still connect and report
the difference.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import secrets
import socket
from typing import Any, NoReturn

MAX_BYTES = 1 << 20
MAX_BYTES_UNPROVEN = 1 << 14
"""The limit until a peer has proven that it knows the secret; its `hello` has about 1 KiB."""
Message = dict[str, Any]
_NONCE = re.compile(r"[0-9a-f]{32}")


class Wire:
    """Sends and receives lines without blocking, and buffers data that the kernel does not take."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.closed = False
        self._incoming = b""
        self._outgoing = b""

    @property
    def max_bytes(self) -> int:
        """The longest line that is accepted."""
        return MAX_BYTES

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Message) -> None:
        """Send a message. Never raises; `receive` notices a lost peer."""
        self._send_line(json.dumps(message).encode())

    def flush(self) -> None:
        while self._outgoing and not self.closed:
            try:
                sent = self.sock.send(self._outgoing)
            except BlockingIOError:
                if len(self._outgoing) > MAX_BYTES:
                    self.close()
                return
            except OSError:
                # The peer has ended. Messages that it sent before can still be received.
                self._outgoing = b""
                return
            self._outgoing = self._outgoing[sent:]

    def receive(self) -> list[Message]:
        """The messages that have arrived. Never raises.

        Sets `closed` if the peer has ended or has sent anything that is not a message.
        """
        while not self.closed and len(self._incoming) <= self.max_bytes:
            try:
                piece = self.sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            if not piece:
                self.closed = True
                break
            self._incoming += piece
        *lines, self._incoming = self._incoming.split(b"\n")
        found: list[Message] = []
        for line in lines:
            message = self._take_line(line) if len(line) <= self.max_bytes else None
            if message is None:
                self.closed = True
                break
            found.append(message)
        if len(self._incoming) > self.max_bytes:
            self.closed = True
        return [message for message in found if message]

    def close(self) -> None:
        self.closed = True
        self.sock.close()

    def _send_line(self, line: bytes) -> None:
        self._outgoing += line + b"\n"
        self.flush()

    def _take_line(self, line: bytes) -> Message | None:
        """The message in a line, {} for a line that only `SealedWire` needs, None if invalid."""
        return parse(line)


class SealedWire(Wire):
    """Both sides prove with every message that they know the run's secret. Nothing is encrypted.

    Each side first sends a random nonce. The key of a direction is HMAC-SHA256(secret, direction,
    context, both nonces), and the MAC of a message covers its number in that direction. So a
    recorded message is refused if it is sent again, or in another connection, direction or run.
    Messages are queued until the peer's nonce has arrived.

    Args:
        secret: the run's secret, the same on both sides.
        context: other text that both sides must agree on, such as the number of ranks; not secret.
        is_coordinator: whether this side is the coordinator.
    """

    def __init__(
        self, sock: socket.socket, secret: bytes, context: str, *, is_coordinator: bool
    ) -> None:
        super().__init__(sock)
        self.is_proven = False  # a message with a valid MAC has arrived
        self.is_refused = False  # a message with a wrong MAC has arrived
        self._secret = secret
        self._context = context
        self._is_coordinator = is_coordinator
        self._nonce = secrets.token_hex(16)
        self._keys: tuple[bytes, bytes] | None = None  # for sending, for receiving
        self._sent = 0
        self._received = 0
        self._waiting: list[Message] = []
        self._send_line(json.dumps({"nonce": self._nonce}).encode())

    @property
    def max_bytes(self) -> int:
        return MAX_BYTES if self.is_proven else MAX_BYTES_UNPROVEN

    @property
    def has_answered(self) -> bool:
        """Whether the peer has sent a nonce; `is_proven`: whether it knows the secret too."""
        return self._keys is not None

    def send(self, message: Message) -> None:
        if self._keys is None:
            self._waiting.append(message)
            return
        body = json.dumps(message).encode()
        self._send_line(_mac(self._keys[0], self._sent, body) + b" " + body)
        self._sent += 1

    def _take_line(self, line: bytes) -> Message | None:
        if self._keys is None:
            return self._agree_on_keys(line)
        mac, _, body = line.partition(b" ")
        if not hmac.compare_digest(mac, _mac(self._keys[1], self._received, body)):
            self.is_refused = True
            return None
        self._received += 1
        self.is_proven = True
        return parse(body)

    def _agree_on_keys(self, line: bytes) -> Message | None:
        """Compute both keys from the peer's nonce; None if the line is not a valid nonce."""
        peer_nonce = (parse(line) or {}).get("nonce")
        if (
            not isinstance(peer_nonce, str)
            or not _NONCE.fullmatch(peer_nonce)
            or peer_nonce == self._nonce
        ):
            return None
        nonces = (self._nonce, peer_nonce) if self._is_coordinator else (peer_nonce, self._nonce)
        labels = ("from the hub", "to the hub")
        texts = ["\0".join((label, self._context, *nonces)).encode() for label in labels]
        keys = [hmac.digest(self._secret, text, hashlib.sha256) for text in texts]
        self._keys = (keys[0], keys[1]) if self._is_coordinator else (keys[1], keys[0])
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self.send(message)
        return {}


def _mac(key: bytes, number: int, body: bytes) -> bytes:
    return hmac.digest(key, number.to_bytes(8, "big") + body, hashlib.sha256).hex().encode()


def parse(line: bytes) -> Message | None:
    """The JSON object in `line`; None for other text, infinite numbers or too deep nesting."""
    try:
        message = json.loads(line, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number
