"""Run a web server for a test: a handler class with a state, on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

State = TypeVar("State")


class Handler(BaseHTTPRequestHandler):
    """Logs nothing; each answer states its length."""

    state: Any

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        """`headers` are named with _ for -."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: object, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[Handler], state: State) -> Iterator[State]:
    """Serve until the block ends. Requests see `state` as `self.state`, and `state.url` is set."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
