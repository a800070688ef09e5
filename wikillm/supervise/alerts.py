"""Decides which events of a run send a message, and sends at most one message for each event.

The agent of rank 0, which outlives its rank, reports how a start of the run ended. If rank 0's node
is lost, agents of other nodes try to report it, and only the agent that creates RUN/ranks/alert
sends. A separate process sends the message (`observe/alert_channels.py`); it gets secrets through
its environment only.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wikillm.core.child_environment import environment_with_wikillm
from wikillm.core.errors import ExitCode
from wikillm.core.held_output import real_descriptors

WAIT_SECONDS = 4.0
"""Seconds to wait for the message before an exit: in a container the exit ends the sender too."""
SPIKE_PAUSE = 600.0
"""Shortest time in seconds between messages about spikes: services refuse frequent messages."""
RESTARTS = "WIKILLM_MAX_RESTARTS"
"""Environment variable with --max-restarts, set by a launcher that restarts failed runs."""
_SENDER = "wikillm.observe.alert_channels"
_CTRL_C = "Stopped by SIGINT"


def event_of(code: int) -> str:
    """The event of the alert for a rank that reported this exit code."""
    return {int(ExitCode.DONE): "ended", int(ExitCode.STOPPED): "stopped"}.get(code, "failed")


@dataclass(slots=True)
class Alerts:
    """Sends the messages of one rank.

    Args:
        section: the section `alerts` as JSON; without channels nothing is sent.
        run: the run's name.
        run_dir: the run directory. `opened` is set once this start of the run owns it.
        is_first: this rank sends if RUN/ranks/alert cannot be created.
    """

    section: dict[str, Any]
    run: str
    run_dir: str
    rank: int = 0
    is_first: bool = True
    opened: bool = False
    _has_ended: bool = field(default=False, init=False)
    _spiked: float = field(default=float("-inf"), init=False)

    def arguments(self) -> dict[str, Any]:
        """The arguments that create an equal `Alerts` in another process."""
        names = ("section", "run", "run_dir", "rank", "is_first")
        return {name: getattr(self, name) for name in names}

    def wants(self, event: str) -> bool:
        """Whether a message is sent for the event."""
        return bool(self.section["channels"]) and event in self.section["events"]

    def end(self, event: str, code: int, reason: str, step: int | None) -> None:
        """Report how this start ended. Only the first call sends; it waits at most WAIT_SECONDS.

        Nothing is sent after Ctrl-C, since the user is present.
        """
        if self._has_ended:
            return
        self._has_ended = True
        if event == "stopped" and _CTRL_C in reason:
            return
        note = _what_follows(code, os.environ)
        claim = str(Path(self.run_dir) / "ranks" / "alert") if self.opened else None
        self.send(event, reason, code=code, step=step, note=note, claim=claim, wait=WAIT_SECONDS)

    def spike(self, reason: str, step: int) -> None:
        """Report a loss spike, at most one in SPIKE_PAUSE seconds. Does not wait."""
        if time.monotonic() - self._spiked > SPIKE_PAUSE:
            self._spiked = time.monotonic()
            self.send("spike", reason, step=step)

    def send(
        self,
        event: str,
        reason: str,
        *,
        code: int | None = None,
        step: int | None = None,
        note: str = "",
        claim: str | None = None,
        wait: float = 0.0,
    ) -> None:
        """Start the process that sends, and wait at most `wait` seconds for it. Never raises.

        Args:
            note: what happens next, such as a restart.
            claim: the file that the process creates first; if it exists, nothing is sent.
        """
        if not self.wants(event):
            return
        message = {
            "event": event, "run": self.run, "run_dir": self.run_dir, "host": socket.gethostname(),
            "step": step, "exit_code": code, "reason": reason, "note": note,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }  # fmt: skip
        log = str(Path(self.run_dir) / "logs" / f"rank_{self.rank}.log")
        alerts = {key: value for key, value in self.section.items() if key != "channels"}
        request = {
            "alerts": alerts, "message": message, "log": log if self.opened else None,
            "claim": claim, "is_first": self.is_first,
        }  # fmt: skip
        with suppress(OSError, subprocess.TimeoutExpired):  # out of processes or descriptors
            sender = subprocess.Popen(
                [sys.executable, "-m", _SENDER],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=real_descriptors()[1],
                env=environment_with_wikillm(),
                start_new_session=True,  # Ctrl-C and the end of the launcher do not reach it
            )
            with sender.stdin as pipe:  # type: ignore[union-attr]
                pipe.write(json.dumps(request).encode())
            if wait:
                sender.wait(wait)


def _what_follows(code: int, environ: Mapping[str, str]) -> str:
    """A sentence if a launcher will start the run again, as far as a rank can tell, else ""."""
    if code not in (ExitCode.BUG, ExitCode.MACHINE):
        return ""
    if limit := environ.get(RESTARTS):
        return f"The launcher starts it again, unless {limit} restarts made no new checkpoint."
    count = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    max_restarts = environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if count.isdecimal() and max_restarts.isdecimal() and int(count) < int(max_restarts):
        return f"torchrun starts it again (restart {int(count) + 1} of {max_restarts})."
    return ""
