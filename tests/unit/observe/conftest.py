"""A SwanLab server on loopback: the HTTP calls that tracking uses, all requests kept."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness.loopback import Handler, serving


class LoopbackSwanLab:
    """`calls`: (method, path, body) of each request; those that match `stall_on` never return."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.experiments: set[str] = set()
        self.stall_on = ""
        self.url = ""
        self._serving = ExitStack()
        self._serving.enter_context(serving(_Handler, self))

    def answer(self, method: str, path: str, body: str) -> tuple[int, Any]:
        if path == "/login/api_key":
            expires = "2099-01-01T00:00:00.000Z"
            return 200, {"sid": "s", "expiredAt": expires, "userInfo": {"username": "me"}}
        if path.endswith("/experiment"):
            cuid = json.loads(body)["cuid"]
            is_new = cuid not in self.experiments
            self.experiments.add(cuid)
            known = {} if is_new else {"createdAt": "2026-01-01T00:00:00.000Z"}
            name = json.loads(body)["name"]
            return (201 if is_new else 200), {"cuid": cuid, "name": name, "slug": cuid, **known}
        if path.startswith("/house/metrics/summaries"):
            return 200, {"SCALAR": [{"key": "train/loss", "step": 1}], "MEDIA": [], "LOG": []}
        if path == "/resources/presigned/put":
            count = len(json.loads(body)["paths"])
            return 200, {"urls": [f"{self.url}/objects/{i}" for i in range(count)]}
        if method == "GET" and path.startswith("/project/"):
            name = path.split("/")[3]
            return 200, {
                "cuid": "p1",
                "name": name,
                "path": f"/me/{name}",
                "version": 1,
                "visibility": "PRIVATE",
                "group": {"username": "me"},
                "_count": {"experiments": 0},
            }
        return 200, {}

    def metrics(self) -> dict[tuple[str, int], Any]:
        """Every scalar that arrived: (key, step) -> value."""
        batches = [json.loads(body) for _, path, body in self.calls if path == "/api/house/metrics"]
        return {
            (metric["key"], metric["index"]): metric["data"]
            for batch in batches
            if batch["type"] == "scalar"
            for metric in batch["metrics"]
        }

    def die(self) -> None:
        """No longer listen: connections are refused from now on."""
        self._serving.close()


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    state: LoopbackSwanLab

    def _any(self) -> None:
        server = self.state
        body = self.body().decode(errors="replace")
        server.calls.append((self.command, self.path, body))
        if server.stall_on and server.stall_on in self.path:
            time.sleep(3600)
        path = self.path.split("?")[0].removeprefix("/api")
        status, answer = server.answer(self.command, path, body)
        self.send_json(answer, status)

    do_GET = do_POST = do_PUT = _any


@pytest.fixture
def server() -> Iterator[LoopbackSwanLab]:
    server = LoopbackSwanLab()
    yield server
    server.die()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment without the developer's SwanLab, proxies or home."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("SWANLAB_")
    }
    own = {"HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    return {**kept, **own}
