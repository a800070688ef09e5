"""Ranks that have been started: send them signals, wait for them, and learn how they ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from harness.ranks import start_ranks

FOLLOW_SECONDS = 10.0  # in which the other ranks must end after one that failed


@dataclass(frozen=True, slots=True)
class Ended:
    """How a rank ended. `code` is None when the rig had to end it, and negative for a signal."""

    code: int | None
    message: str
    output: str = ""


class Job:
    """Ranks that have been started."""

    def __init__(self, program: Callable[..., Any], world: int, *args: Any) -> None:
        self.began = time.time()
        self._channels, self._processes = start_ranks(program, world, args, {})
        self.pids = [process.pid or 0 for process in self._processes]

    def kill(self, ranks: list[int], *, with_children: bool = False) -> None:
        """SIGKILL to these ranks, and to their agents and loaders if asked for."""
        self.send(signal.SIGKILL, ranks, with_children=with_children)

    def send(self, number: int, ranks: list[int], *, with_children: bool = False) -> None:
        pids = [self.pids[rank] for rank in ranks]
        children = [child for pid in pids for child in _children(pid)] if with_children else []
        for pid in (*pids, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    def wait_for_end(self, timeout: float) -> None:
        """Wait until no rank runs, at most this long."""
        deadline = time.monotonic() + timeout
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(0.01)

    def wait_for_death(self, rank: int, timeout: float = 60.0) -> bool:
        """Whether this rank has been killed by SIGKILL, and did not end otherwise."""
        self._processes[rank].join(timeout)
        return self._processes[rank].exitcode == -signal.SIGKILL

    def end(self, timeout: float = 120.0) -> list[Ended]:
        """Wait for all ranks. Like a launcher, end the others some time after one that failed."""
        ended: dict[int, Ended] = {}
        waiting = dict(zip(self._channels, range(len(self._channels)), strict=True))
        deadline = time.monotonic() + timeout
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for channel in ready:
                rank = waiting.pop(channel)  # type: ignore[arg-type]
                ended[rank] = self._ended(channel, rank)
                if ended[rank].code != 0:
                    deadline = min(deadline, time.monotonic() + FOLLOW_SECONDS)
        for process in self._processes:
            process.join(timeout=5 if len(ended) == len(self._processes) else 0)
            process.kill()
            process.join(timeout=5)
        for channel in self._channels:
            channel.close()
        late = Ended(None, "it did not end")
        return [ended.get(rank, late) for rank in range(len(self._processes))]

    def _ended(self, channel: Any, rank: int) -> Ended:
        try:
            kind, result = channel.recv()
        except EOFError:
            self._processes[rank].join(5)
            return Ended(self._processes[rank].exitcode, "it ended without a message")
        return Ended(**result) if kind == "ok" else Ended(1, str(result))


def _children(pid: int) -> list[int]:
    """All processes below `pid`."""
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found + [below for child in found for below in _children(child)]
