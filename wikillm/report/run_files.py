"""Read the files of a run directory. The content of a missing or damaged file is empty.

The files are metrics.jsonl, events.jsonl, config.resolved.yaml, data.json, plan.json,
environment.json, outcome.json, exit.json, diverged.json and logs/ (for warnings). If data.json has
no funnel, it is read from the manifest of the run's store. Nothing is written.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from wikillm.core.errors import ConfigError
from wikillm.core.files import read_object, read_regular, read_tail
from wikillm.observe import names
from wikillm.observe.redact import without_queries
from wikillm.observe.sinks import kept_records, read_records

_SETTING = re.compile(r'( *)(\w+):(?: ((?:"(?:[^"\\]|\\.)*"|[^"#])*?)(?:  # (.*))?)?$')
"""A line of config.resolved.yaml: indentation, name, value, origin."""
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ ([A-Z]+) [\w.]+: (.*)")
_LOG_TAIL = 1 << 20  # bytes of a rank's log that are searched
_LOG_FILES = 64
MAX_NUMBER = 1e100
"""Larger numbers are treated as damage and left out, so that sums stay finite."""
_MESSAGE_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class RecordedSetting:
    """A line of config.resolved.yaml. `origin` is empty for a default."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class LoggedWarning:
    """A warning or error in the rank logs. Equal messages of several ranks are merged."""

    first: str  # the time, as written in the log
    level: str
    message: str
    count: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The content of a run directory.

    Attributes:
        records: all records of metrics.jsonl.
        metrics: one record per step, from the latest segment that logged the step.
        events: all events of events.jsonl.
        current: the events without those of abandoned steps.
    """

    path: Path
    records: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    current: list[dict[str, Any]]
    settings: dict[str, RecordedSetting]
    data: dict[str, Any]
    plan: dict[str, Any]
    environment: dict[str, Any]
    outcome: dict[str, Any]
    exit: dict[str, Any]
    diverged: dict[str, Any]
    warnings: list[LoggedWarning]

    @property
    def name(self) -> str:
        setting = self.settings.get("run.name")
        return plain(setting.value) if setting else self.path.name

    @property
    def last(self) -> dict[str, Any]:
        """The record of the last logged step; {} if no step was logged."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations on all held-out text, oldest first."""
        evaluated = [event for event in self.current if event[names.KIND] == names.EVAL]
        return [event for event in evaluated if names.EVAL_LOSS in event]

    def tokens_at(self, step: int) -> float:
        """Tokens trained on at `step`, interpolated between logging steps."""
        after = bisect_left(self.metrics, step, key=itemgetter(names.STEP))
        before = self.metrics[after - 1] if after else {names.STEP: 0}
        tokens_before = number(before, names.TOKENS) or 0.0
        if after == len(self.metrics):
            return tokens_before
        following = self.metrics[after]
        steps = max(1, following[names.STEP] - before[names.STEP])
        tokens = (number(following, names.TOKENS) or 0.0) - tokens_before
        return tokens_before + tokens * (step - before[names.STEP]) / steps


def read_run(path: Path) -> RunFiles:
    """Read a run directory. Raises ConfigError if the folder is not one."""
    if not any((path / name).is_file() for name in ("run.json", "metrics.jsonl")):
        raise ConfigError(
            f"{path} is not a run directory.",
            got="neither run.json nor metrics.jsonl",
            fix="wikillm report RUN, where RUN is the run.dir of a run",
        )
    records = read_records(path / "metrics.jsonl")
    metrics = kept_records(records)
    events = [event for event in read_records(path / "events.jsonl") if names.KIND in event]
    return RunFiles(
        path=path,
        records=records,
        metrics=metrics,
        events=events,
        current=_without_abandoned(events, records),
        settings=read_settings(path / "config.resolved.yaml"),
        data=_with_funnel(read_object(path / "data.json")),
        plan=read_object(path / "plan.json"),
        environment=read_object(path / "environment.json"),
        outcome=read_object(path / "outcome.json"),
        exit=read_object(path / "exit.json"),
        diverged=read_object(path / "diverged.json"),
        warnings=_warnings(path / "logs"),
    )


def labels(runs: Sequence[RunFiles]) -> list[str]:
    """The names of the runs, or their folders if two runs have equal names."""
    found = [run.name for run in runs]
    return found if len(set(found)) == len(found) else [str(run.path) for run in runs]


def number(record: dict[str, Any], name: str) -> float | None:
    """A number in a record; None if it is absent, not a number, not finite or too large."""
    value = record.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if value is not None and is_number and abs(value) < MAX_NUMBER else None


def as_dict(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object, else an empty object."""
    return value if isinstance(value, dict) else {}


def as_dicts(value: Any) -> list[dict[str, Any]]:
    """The objects in a JSON array; empty if `value` is not an array."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def plain(value: str) -> str:
    """A YAML scalar without its quotes."""
    with suppress(ValueError):
        found = json.loads(value)
        return found if isinstance(found, str) else value
    return value


def read_settings(path: Path) -> dict[str, RecordedSetting]:
    """The settings in a config.resolved.yaml, by key; {} if the file is missing."""
    found: dict[str, RecordedSetting] = {}
    sections: list[str] = []
    for line in _text(path).splitlines():
        match = _SETTING.match(line)
        if match is None:
            continue
        depth = len(match[1]) // 2
        sections = [*sections[:depth], match[2]]
        if sections[0] == "layers":
            break
        if match[3]:
            key = ".".join(sections)
            found[key] = RecordedSetting(key, match[3], match[4] or "")
    return found


def _without_abandoned(
    events: list[dict[str, Any]], records: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The events whose step was not trained again by a later segment."""
    begun: dict[int, int] = {}
    for record in records:
        segment = record.get(names.SEGMENT)
        step = record.get(names.STEP)
        if isinstance(segment, int) and isinstance(step, int):
            begun[segment] = min(step, begun.get(segment, step))

    def is_current(event: dict[str, Any]) -> bool:
        step = event.get(names.STEP)
        own = event.get(names.SEGMENT)
        if not isinstance(step, int) or not isinstance(own, int):
            return names.STEP not in event
        return not any(segment > own and first <= step for segment, first in begun.items())

    return [event for event in events if is_current(event)]


def _with_funnel(data: dict[str, Any]) -> dict[str, Any]:
    """Add the funnel from the store's manifest to a data.json of an earlier version, which lacks
    it."""
    if not data or "funnel" in data or "mixture" in data:
        return data
    manifest = read_object(Path(str(data.get("store", ""))) / "manifest.json")
    is_same = manifest.get("fingerprint") == data.get("fingerprint")
    return {**data, "funnel": manifest["funnel"]} if is_same and "funnel" in manifest else data


def _warnings(logs: Path) -> list[LoggedWarning]:
    """Warnings and errors in the last part of each rank log, oldest first."""
    found: dict[str, LoggedWarning] = {}
    for path in sorted(logs.glob("rank_*.log"))[:_LOG_FILES]:
        rank = path.stem.removeprefix("rank_")
        if not rank.isdecimal():
            continue
        for time, level, message in _log_messages(path):
            before = found.get(message)
            found[message] = LoggedWarning(
                first=min(time, before.first) if before else time,
                level=level,
                message=message,
                count=before.count + 1 if before else 1,
                ranks=tuple(sorted({*(before.ranks if before else ()), int(rank)})),
            )
    return sorted(found.values(), key=lambda warning: warning.first)


def _log_messages(path: Path) -> list[tuple[str, str, str]]:
    """(time, level, message) of each warning and error; a message can have several lines."""
    try:
        lines = read_tail(path, _LOG_TAIL).decode(errors="replace").splitlines()
    except OSError:
        return []
    found: list[list[str]] = []
    is_open = False
    for line in lines:
        if match := _LOG_LINE.match(line):
            is_open = match[2] in ("WARNING", "ERROR", "CRITICAL")
            if is_open:
                found.append([match[1], match[2].lower(), match[3]])
        elif is_open:
            found[-1][2] += f"\n{line}"
    return [
        (time, level, without_queries(message[:_MESSAGE_CHARACTERS]))
        for time, level, message in found
    ]


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode(errors="replace")
    except OSError:
        return ""
