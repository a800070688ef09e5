"""Reads the state of a run from its directory, during the run and after it: `wikillm status`."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wikillm.core.errors import ConfigError
from wikillm.core.files import read_object, read_tail
from wikillm.supervise.records import RankRecord, read_records, stop_path
from wikillm.supervise.requests import stop_file, waits_to_restart
from wikillm.supervise.stop import is_running

_TAIL = 1 << 16  # bytes of metrics.jsonl that hold its last line
_SHOWN = ("step", "tokens", "time", "loss", "tokens_per_second")


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of a run.

    Attributes:
        state: starting, running, stopping, restarting, silent (no rank runs, and none reported its
            end), or the `meaning` in exit.json.
        running: for each rank, whether its process runs.
        metrics: the last line of metrics.jsonl.
        exit: the content of exit.json.
        now: Unix time of this reading.
    """

    run: Path
    state: str
    ranks: tuple[RankRecord, ...]
    running: tuple[bool, ...]
    metrics: dict[str, Any] | None
    exit: dict[str, Any] | None
    now: float

    def to_json(self) -> dict[str, Any]:
        metrics = self.metrics or {}
        shown = ("step", "tokens", "loss", "tokens_per_second")
        return {
            "run": str(self.run),
            "state": self.state,
            **{name: metrics.get(name) for name in shown},
            "logged_seconds_ago": self.now - metrics["time"] if "time" in metrics else None,
            "exit": self.exit,
            "ranks": [
                {
                    "rank": record.rank,
                    "host": record.process.host,
                    "pid": record.process.pid,
                    "interface": record.interface,
                    "phase": record.phase,
                    "step": record.step,
                    "standing_seconds": record.standing,
                    "seen_seconds_ago": record.age(self.now),
                    "running": running,
                    "exit": record.exit,
                }
                for record, running in zip(self.ranks, self.running, strict=True)
            ],
        }


def read_status(run: Path) -> RunStatus:
    """The status of a run. Raises ConfigError if `run` is not a run directory."""
    if not (run / "run.json").is_file():
        raise ConfigError(
            f"{run} is not a run directory.",
            got="no run.json",
            fix="wikillm status RUN, with the run.dir of the run",
        )
    now = time.time()
    ranks = read_records(run)
    running = tuple(is_running(record, now) for record in ranks)
    ended = read_object(run / "exit.json") or None
    if any(running):
        state = "stopping" if stop_path(run).exists() or stop_file(run).exists() else "running"
    elif waits_to_restart(run):
        state = "restarting"
    elif ended is not None:
        state = str(ended.get("meaning", "ended"))
    else:
        state = "silent" if ranks else "starting"
    return RunStatus(
        run, state, tuple(ranks), running, _last_line(run / "metrics.jsonl"), ended, now
    )


def _is_shown(value: object, name: str) -> bool:
    """Whether it is a number, or null, as a loss or a speed that was not finite is written."""
    return type(value) in (int, float) or (value is None and name in _SHOWN[3:])


def _last_line(path: Path) -> dict[str, Any] | None:
    """The last complete line of metrics.jsonl."""
    try:
        lines = read_tail(path, _TAIL).splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError, RecursionError):
            found = json.loads(line)
            is_record = isinstance(found, dict) and "loss" in found
            if is_record and all(_is_shown(found.get(name), name) for name in _SHOWN):
                return found
    return None
