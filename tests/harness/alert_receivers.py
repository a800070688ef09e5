"""What alerts are sent to: a web server with hooks, and an SMTP server with TLS and a password."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import HTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope

from harness.loopback import Handler, serving
from harness.swanlab_service import make_certificate


@dataclass
class HookServer:
    """`heard`: path with query, and body, of each request. `answers`: by path, status and body."""

    url: str = ""
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)

    def events(self, path: str = "/hook") -> list[str]:
        """Events of the messages that the plain webhook got."""
        return [body["event"] for where, body in self.heard if where == path]

    def wait_for(self, count: int, seconds: float = 20.0) -> list[dict[str, Any]]:
        """The messages, once `count` have arrived; then waits for one too many."""
        deadline = time.monotonic() + seconds
        while len(self.heard) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        return [body for _, body in self.heard]


class _Handler(Handler):
    state: HookServer

    def do_POST(self) -> None:
        self.state.heard.append((self.path, json.loads(self.body())))
        status, answer = self.state.answers.get(self.path, (200, {"errcode": 0, "code": 0}))
        if status == 0:
            time.sleep(30)
        self.send_json(answer, status)


@contextmanager
def hook_server() -> Iterator[HookServer]:
    """Serve until the block ends."""
    server = HookServer()
    with serving(_Handler, server):
        yield server


@dataclass
class MailServer:
    """`mails` that arrived; `certificate` is the file that makes a client trust the server."""

    port: int
    certificate: Path
    mails: list[Message] = field(default_factory=list)

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"


class _AnyPort(Controller):
    """Port 0 becomes the port that the system chose."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def mail_server(folder: Path, password: str) -> Iterator[MailServer]:
    """An SMTP server that takes mail only after STARTTLS and a login with `password`."""
    certificate, context = make_certificate(folder)
    server = MailServer(0, certificate)

    def check(smtp: Any, session: Any, envelope: Any, mechanism: str, login: Any) -> AuthResult:
        return AuthResult(success=login.password == password.encode(), handled=False)

    controller = _AnyPort(
        server, hostname="127.0.0.1", port=0, tls_context=context, require_starttls=True,
        auth_required=True, authenticator=check,
    )  # fmt: skip
    controller.start()
    try:
        server.port = controller.port
        yield server
    finally:
        controller.stop()


class _ToFile(Handler):
    def do_POST(self) -> None:
        with open(sys.argv[2], "ab") as file:
            file.write(self.body() + b"\n")
        self.send(204)


if __name__ == "__main__":  # on a node of a test: PORT FILE
    HTTPServer(("127.0.0.1", int(sys.argv[1])), _ToFile).serve_forever()
