"""The other end of `doctor.node`: a process behind ssh, asked with a time limit for every answer."""

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
from wikillm.doctor.cluster import Refusal
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
    """A node gave no answer; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


def agent_command(workdir: str) -> str:
    """What the shell of the node runs: as `wikillm launch hostfile` does."""
    return f'cd {shlex.quote(workdir)} && PATH="$PWD/.venv/bin:$PATH" && exec python -m wikillm.doctor.node'


def classify(text: str, code: int | None) -> Refusal:
    """What ssh, the shell or Python said before the agent could speak."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for words, kind in _KINDS:
        found = [line for line in lines if words in line.lower()]
        if found:
            return Refusal(kind, lines[-1] if kind == "python" else found[0])
    return Refusal("other", lines[-1] if lines else f"ssh ended with {code} and said nothing")


class Connection:
    """One node. `ask` raises NodeLost; after that the connection is gone."""

    def __init__(self, node: str, workdir: str) -> None:
        self.node, self._number = node, 0
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
        self._readers = [
            threading.Thread(target=work, daemon=True) for work in (self._read, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    def ask(self, command: str, seconds: float, /, **arguments: Any) -> Any:
        """The answer to `command`, within `seconds`."""
        self._number += 1
        line = json.dumps({"number": self._number, "command": command, "arguments": arguments})
        assert self._process.stdin is not None, "opened as a pipe"
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise NodeLost(self._why_it_ended()) from None
        end = time.monotonic() + seconds
        while True:
            try:
                said = self._answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise NodeLost(
                    Refusal("timeout", f"no answer to {command!r} within {seconds:.0f} s")
                ) from None
            if said is None:
                raise NodeLost(self._why_it_ended())
            if said.get(MARK) == self._number:
                break
        if "error" in said:
            raise NodeLost(Refusal("other", f"{command}: {said['error']}"))
        return said.get("value")

    def close(self) -> None:
        """End the agent by ending its input; the ssh process after a moment."""
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _why_it_ended(self) -> Refusal:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._readers[1].join(timeout=1)
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
