"""Messages between agents, hub and rank: one JSON object a line over a stream socket, bounded, never pickle."""

from __future__ import annotations

import json
import socket
from typing import Any

MOST_BYTES = 1 << 20
Message = dict[str, Any]


class Wire:
    """A socket that speaks lines. Nothing here waits: what the kernel does not take at once is kept for later."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock, self._incoming, self._outgoing = sock, b"", b""
        self.closed = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Message) -> None:
        """Never raises: a peer that is gone shows at the next `receive`."""
        self._outgoing += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        while self._outgoing and not self.closed:
            try:
                sent = self.sock.send(self._outgoing)
            except BlockingIOError:
                if len(self._outgoing) > MOST_BYTES:
                    self.close()
                return
            except OSError:
                self.close()
                return
            self._outgoing = self._outgoing[sent:]

    def receive(self) -> list[Message]:
        """What has arrived; `closed` is set when the other side is gone or talks nonsense."""
        while not self.closed:
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
            if len(self._incoming) > MOST_BYTES:
                self.closed = True
        *lines, self._incoming = self._incoming.split(b"\n")
        found = []
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if isinstance(message, dict):
                found.append(message)
            else:
                self.closed = True
        return found

    def close(self) -> None:
        self.closed = True
        self.sock.close()
