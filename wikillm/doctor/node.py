"""The doctor on a node: `python -m wikillm.doctor.node` answers requests, one JSON object per line.

Started over ssh, it ends with its standard input, and then removes its listeners and files.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wikillm.core.files import nearest_existing
from wikillm.doctor.needs import Request
from wikillm.doctor.questions import gather

MARK = "wikillm-doctor"
CONNECT_SECONDS = 4.0
LOOK_SECONDS = 5.0
COMMANDS = ("hello", "facts", "write", "look", "listen", "connect", "all_reduce", "clean")
ALL_REDUCE_SECONDS = 18.0
MEASURED_SECONDS = 1.0


class NodeServer:
    """Answers requests by name. Changes nothing but its own files and ports."""

    def __init__(self) -> None:
        self._listeners: list[socket.socket] = []
        self._files: list[Path] = []

    def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        """The result of a command. Raises ValueError if it is unknown, OSError from the system."""
        if command not in COMMANDS:
            raise ValueError(f"no such command: {command}")
        return getattr(self, command)(**arguments)

    def hello(self, environment: dict[str, str]) -> None:
        """Set the variables that a run would get here."""
        os.environ.update(environment)

    def facts(self, request: dict[str, Any]) -> dict[str, Any]:
        request["data_path"] = tuple(request["data_path"])
        return asdict(gather(Request(**request)))

    def write(self, folder: str, file: str, text: str) -> None:
        """Write a file beside the run directory."""
        path = _existing(folder) / file
        path.write_text(text, encoding="utf-8")
        self._files.append(path)

    def look(self, folder: str, names: dict[str, str]) -> list[str]:
        """The files of `names` (file -> text) without that text; waits LOOK_SECONDS for them."""
        end = time.monotonic() + LOOK_SECONDS
        while True:
            where = _existing(folder)
            missing = [name for name, text in names.items() if _text(where / name) != text]
            if not missing or time.monotonic() > end:
                return missing
            time.sleep(0.3)

    def listen(self, ports: list[int], token: str) -> list[int]:
        """Listen on `ports` (0: any) and send `token` to peers. Returns the ports, 0 if busy."""
        found = []
        for port in ports:
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind(("", port))
                server.listen(64)
            except OSError:
                server.close()
                found.append(0)
                continue
            self._listeners.append(server)
            threading.Thread(target=_serve, args=(server, token.encode()), daemon=True).start()
            found.append(int(server.getsockname()[1]))
        return found

    def connect(self, targets: list[tuple[str, str, int, str]]) -> dict[str, str]:
        """Node -> "" or its first error. A target is (node, address, port, expected token)."""
        with ThreadPoolExecutor(32) as pool:
            errors = list(pool.map(lambda target: _try(*target[1:]), targets))
        found: dict[str, str] = {}
        for (node, *_), error in zip(targets, errors, strict=True):
            found[node] = found.get(node) or error
        return found

    def all_reduce(
        self, rank: int, world: int, address: str, port: int, card: str
    ) -> dict[str, Any]:
        """Run one rank of the measurement. Returns the result, on rank 0, or `error`."""
        rendezvous = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        place = {"RANK": str(rank), "WORLD_SIZE": str(world)}
        own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **rendezvous, **place}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "wikillm.measure.collective", str(MEASURED_SECONDS)],
                env={"GLOO_SOCKET_IFNAME": card, **os.environ, **own},
                capture_output=True,
                text=True,
                timeout=ALL_REDUCE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no result within {ALL_REDUCE_SECONDS:.0f} s"}
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return {"error": lines[-1].strip() if lines else f"ended with {done.returncode}"}
        return dict(json.loads(done.stdout.splitlines()[-1])) if rank == 0 else {}

    def clean(self) -> None:
        """Close the listeners and remove the files."""
        for server in self._listeners:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        for path in self._files:
            path.unlink(missing_ok=True)
        self._listeners.clear()
        self._files.clear()


def _existing(folder: str) -> Path:
    path = Path(folder)
    return path if path.is_dir() else nearest_existing(path)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _serve(server: socket.socket, token: bytes) -> None:
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            return
        with contextlib.suppress(OSError), peer:
            peer.sendall(token)


def _try(address: str, port: int, token: str) -> str:
    try:
        with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as peer:
            received = b""
            while piece := peer.recv(256):
                received += piece
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return f"port {port} at {address}: {reason}"
    is_ours = received.decode(errors="replace") == token
    return "" if is_ours else f"port {port} at {address}: another program answers there"


def main() -> None:
    """Answer until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries goes to standard error, not between the answers
    server = NodeServer()
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                value = server.answer(asked["command"], asked["arguments"])
                answer: dict[str, Any] = {"value": value}
            except Exception as error:  # reported to the other side
                answer = {"error": f"{type(error).__name__}: {error}"}
            channel.write(json.dumps({MARK: asked["number"], **answer}) + "\n")
            channel.flush()
    finally:
        server.clean()
    os._exit(0)  # threads that hang in a dead mount would keep the process


if __name__ == "__main__":
    main()
