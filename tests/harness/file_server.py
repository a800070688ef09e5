"""A loopback web server for a folder, with ranges and ETags as in nginx, and with faults."""

from __future__ import annotations

import hashlib
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from harness.loopback import Handler, serving


@dataclass
class FileServer:
    """Serves the files below `root`.

    `faults` maps a path to the faults of its next responses, one each: ("cut", bytes of the body),
    ("status", code), ("replace", new content, set before the response), ("from", a first byte that
    differs from the request), ("pass",). `log` has (path, range header or "") of every request.
    Without `ranges` the whole file is sent.
    """

    root: Path
    url: str = ""
    ranges: bool = True
    faults: dict[str, list[tuple]] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0  # bytes of bodies

    def fetched(self, name: str) -> list[str]:
        """The requested ranges of a file, except for the first request for its size."""
        return [wanted for path, wanted in self.log if path == f"/{name}" and wanted != "bytes=0-0"]


class _Handler(Handler):
    state: FileServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        state = self.state
        path = unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range", "")
        state.log.append((path, wanted))
        waiting = state.faults.get(path.lstrip("/"), [])
        kind, *details = waiting.pop(0) if waiting else ("pass",)
        file = state.root / path.lstrip("/")
        if kind == "replace":
            file.write_bytes(details[0])
        if kind == "status" or not file.is_file():
            self.send_error(details[0] if kind == "status" else 404)
            return
        content = file.read_bytes()
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted) if state.ranges else None
        if asked and self.headers.get("If-Range", tag) != tag:
            asked = None
        first = 0
        last = len(content) - 1
        if asked:
            first = int(asked[1])
            last = min(int(asked[2] or last), last)
            first = details[0] if kind == "from" else first
            if first > last:
                self.send_error(416)
                return
        self.send_response(206 if asked else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        body = content[first : last + 1]
        if kind == "cut":
            body = body[: details[0]]
            self.close_connection = True
        state.sent += len(body)
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def serve(root: Path) -> AbstractContextManager[FileServer]:
    """Serve `root` on a free port of 127.0.0.1."""
    return serving(_Handler, FileServer(root))
