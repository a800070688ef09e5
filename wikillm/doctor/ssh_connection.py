"""A connection to `doctor.node` through ssh, with a time limit for every answer."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import subprocess
import tempfile
import time
from typing import Any

from wikillm.core.errors import MachineError
from wikillm.doctor.facts import NodeFailure
from wikillm.doctor.node import MARK
from wikillm.remote.ssh import ssh_argv

_KINDS = {
    "host key verification failed": "changed-key",
    "permission denied (": "key",
    "cd: ": "folder",
    "python: ": "python",
    "traceback": "python",
}
"""Words in errors of ssh, the shell or Python -> `NodeFailure.kind`."""


def agent_command(workdir: str) -> str:
    """Shell text for the node, as in `wikillm launch hostfile`."""
    folder = shlex.quote(workdir)
    return f'cd {folder} && PATH="$PWD/.venv/bin:$PATH" && exec python -m wikillm.doctor.node'


def classify(text: str, code: int | None) -> NodeFailure:
    """A NodeFailure for an error of ssh, the shell or Python before the node could answer."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for words, kind in _KINDS.items():
        found = [line for line in lines if words in line.lower()]
        if found:
            return NodeFailure(kind, lines[-1] if kind == "python" else found[0])
    return NodeFailure("other", lines[-1] if lines else f"ssh ended with {code}, without a message")


class Connection:
    """A connection to one node. Close it after `ask` has raised NodeFailure."""

    def __init__(self, node: str, workdir: str) -> None:
        self._number = 0
        self._buffer = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        try:
            self._process = subprocess.Popen(
                ssh_argv(node, agent_command(workdir)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
            )
        except FileNotFoundError:
            raise MachineError(
                "ssh is not on this machine.", fix="apt-get install openssh-client"
            ) from None

    def ask(self, command: str, seconds: float, /, **arguments: Any) -> Any:
        """The answer to `command`, within `seconds`."""
        self._number += 1
        line = json.dumps({"number": self._number, "command": command, "arguments": arguments})
        assert self._process.stdin is not None, "opened as a pipe"
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._why_it_ended() from None
        end = time.monotonic() + seconds
        while True:
            answer = self._receive(end)
            if answer is None:
                raise NodeFailure("timeout", f"no answer to {command!r} within {seconds:.0f} s")
            if answer.get(MARK) == self._number:
                break
        if "error" in answer:
            raise NodeFailure("other", f"{command}: {answer['error']}")
        return answer.get("value")

    def _receive(self, end: float) -> dict[str, Any] | None:
        """The next JSON object; None at the time `end`. Banners of the shell are skipped."""
        assert self._process.stdout is not None, "opened as a pipe"
        output = self._process.stdout.fileno()
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                with contextlib.suppress(ValueError):
                    answer = json.loads(line)
                    if isinstance(answer, dict):
                        return answer
            if not select.select([output], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            piece = os.read(output, 65536)
            if not piece:
                raise self._why_it_ended()
            self._buffer += piece

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
        self._stderr.close()

    def _why_it_ended(self) -> NodeFailure:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._stderr.seek(0)
        return classify(self._stderr.read().decode(errors="replace"), self._process.returncode)
