"""A connection to `doctor.node` through ssh, with a time limit for every answer."""

from __future__ import annotations

import contextlib
import json
import queue
import shlex
import subprocess
import threading
import time
from typing import Any

from wikillm.core.errors import MachineError
from wikillm.doctor.facts import Unreachable
from wikillm.doctor.node import MARK
from wikillm.remote.ssh import ssh_argv

_KINDS = (
    ("could not resolve hostname", "name"),
    ("host key verification failed", "changed-key"),
    ("identification has changed", "changed-key"),
    ("permission denied (", "key"),
    ("too many authentication failures", "key"),
    ("connection refused", "refused"),
    ("connection timed out", "timeout"),
    ("no route to host", "timeout"),
    ("network is unreachable", "timeout"),
    ("cd: ", "folder"),
    ("no module named", "python"),
    ("python: not found", "python"),
    ("python: command not found", "python"),
    ("traceback", "python"),
)


class NodeLost(Exception):
    """A node gave no answer; `why` has the reason."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.why = Unreachable(kind, text)


def agent_command(workdir: str) -> str:
    """What the shell of the node runs, as in `wikillm launch hostfile`."""
    folder = shlex.quote(workdir)
    return f'cd {folder} && PATH="$PWD/.venv/bin:$PATH" && exec python -m wikillm.doctor.node'


def classify(text: str, code: int | None) -> NodeLost:
    """The error of ssh, the shell or Python before the node could answer."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for words, kind in _KINDS:
        found = [line for line in lines if words in line.lower()]
        if found:
            return NodeLost(kind, lines[-1] if kind == "python" else found[0])
    return NodeLost("other", lines[-1] if lines else f"ssh ended with {code}, without a message")


class Connection:
    """One node. `ask` raises NodeLost; after that the connection is gone."""

    def __init__(self, node: str, workdir: str) -> None:
        self._number = 0
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._stderr: list[str] = []
        try:
            self._process = subprocess.Popen(
                ssh_argv(node, agent_command(workdir)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except FileNotFoundError:
            raise MachineError(
                "ssh is not on this machine.", fix="apt-get install openssh-client"
            ) from None
        self._error_reader = threading.Thread(target=self._read_errors, daemon=True)
        self._error_reader.start()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, command: str, seconds: float, /, **arguments: Any) -> Any:
        """The answer to `command`, within `seconds`."""
        self._number += 1
        line = json.dumps({"number": self._number, "command": command, "arguments": arguments})
        assert self._process.stdin is not None, "opened as a pipe"
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._why_it_ended() from None
        end = time.monotonic() + seconds
        while True:
            try:
                said = self._answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                text = f"no answer to {command!r} within {seconds:.0f} s"
                raise NodeLost("timeout", text) from None
            if said is None:
                raise self._why_it_ended()
            if said.get(MARK) == self._number:
                break
        if "error" in said:
            raise NodeLost("other", f"{command}: {said['error']}")
        return said.get("value")

    def close(self) -> None:
        """End the node's process by ending its input; kill ssh after a moment."""
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _why_it_ended(self) -> NodeLost:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._error_reader.join(timeout=1)
        return classify("".join(self._stderr), self._process.returncode)

    def _read(self) -> None:
        assert self._process.stdout is not None, "opened as a pipe"
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # a banner of the shell's start-up files
                said = json.loads(line)
                if isinstance(said, dict) and MARK in said:
                    self._answers.put(said)
        self._answers.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None, "opened as a pipe"
        self._stderr.extend(self._process.stderr)
