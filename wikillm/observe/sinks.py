"""Where measurements go: the `Sink` protocol, and the files that are the truth (`metrics.jsonl`, `events.jsonl`).

All sinks live on global rank 0. A sink never stops training: what goes wrong inside is told once. The files are
append-only, one flushed line per record: a resumed run adds records with the next `segment`, and `read_metrics` keeps,
of several records of one step, those of the highest segment. A line torn by a crash is cut off at the next start.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wikillm.core.log import warn
from wikillm.observe import names

METRICS_FILE, EVENTS_FILE = "metrics.jsonl", "events.jsonl"


@dataclass(frozen=True, slots=True)
class Sample:
    """A text the model wrote: `text` without the prompt."""

    prompt: str
    text: str


class Sink(Protocol):
    """Something that hears what a run measures. (rank 0)"""

    def start(self, config: Mapping[str, Any]) -> None:
        """The run begins or goes on; `config` is the whole resolved configuration."""

    def log(self, step: int, values: Mapping[str, float | None], kind: str | None = None) -> None:
        """Values of a logging step, or of an event such as `names.EVAL`."""

    def text(self, step: int, samples: Sequence[Sample]) -> None:
        """Sample generations."""

    def finish(self, exit_code: int, error: str | None = None) -> None:
        """The run ends; returns within a bounded time. May be called more than once."""


class JsonlSink:
    """`metrics.jsonl` and `events.jsonl` in the run directory."""

    def __init__(self, folder: Path) -> None:
        self._metrics, self._events = folder / METRICS_FILE, folder / EVENTS_FILE
        self._segment = 0
        self._has_warned = self._is_finished = False

    @property
    def segment(self) -> int:
        """0 in the first start of a run directory, one more in each later one."""
        return self._segment

    def start(self, config: Mapping[str, Any]) -> None:
        """Cut off torn lines and begin the next segment. The configuration is not written: it has its own file."""
        try:
            self._metrics.parent.mkdir(parents=True, exist_ok=True)
            cut = {file.name: _cut_torn_line(file) for file in (self._metrics, self._events)}
            starts = [
                event
                for event in read_records(self._events)
                if event.get(names.KIND) == names.START
            ]
            last = max((int(event.get(names.SEGMENT) or 0) for event in starts), default=-1)
            self._segment = last + 1
        except OSError as error:
            self._complain(error)
            cut = {}
        torn = {name: size for name, size in cut.items() if size}
        extra = {"torn_bytes_removed": torn} if torn else {}
        self._append(self._events, {names.KIND: names.START, **extra})

    def log(self, step: int, values: Mapping[str, float | None], kind: str | None = None) -> None:
        record = {names.STEP: step, **finite(values)}
        if kind is None:
            self._append(self._metrics, record)
        else:
            self._append(self._events, {names.KIND: kind, **record})

    def text(self, step: int, samples: Sequence[Sample]) -> None:
        texts = [{"prompt": sample.prompt, "text": sample.text} for sample in samples]
        self._append(self._events, {names.KIND: names.SAMPLES, names.STEP: step, "samples": texts})

    def finish(self, exit_code: int, error: str | None = None) -> None:
        if not self._is_finished:
            self._is_finished = True
            self._append(
                self._events, {names.KIND: names.FINISH, "exit_code": exit_code, "error": error}
            )

    def _append(self, path: Path, record: Mapping[str, Any]) -> None:
        stamped = {**record, names.SEGMENT: self._segment, names.TIME: round(time.time(), 3)}
        line = (
            json.dumps(stamped, ensure_ascii=False, allow_nan=False).encode(errors="replace")
            + b"\n"
        )
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(fd).st_size
                if os.write(fd, line) != len(line):
                    os.ftruncate(fd, size)  # the disk is full: no record rather than half of one
                    raise OSError("the disk took only a part of the record")
            finally:
                os.close(fd)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"{self._metrics} cannot be written ({error}); training goes on, records are lost until it can"
            )


def finite(values: Mapping[str, float | None]) -> dict[str, Any]:
    """`values` as JSON allows them: a value that is not finite becomes null, and `nonfinite` says what it was."""
    numbers = {name: _plain(value) for name, value in values.items()}
    odd = {
        name: str(value)
        for name, value in numbers.items()
        if value is not None and not math.isfinite(value)
    }
    plain: dict[str, Any] = {
        name: None if name in odd else value for name, value in numbers.items()
    }
    return {**plain, names.NONFINITE: odd} if odd else plain


def _plain(value: float | None) -> float | None:
    """An int or a float of Python: scalars of NumPy or torch are not JSON."""
    return value if value is None or isinstance(value, int) else float(value)


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a file, in the order they were written. What a crash left torn or filled with zeros is skipped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One record per step, ascending: where a run went back to a checkpoint, the later segment's records count."""
    kept: dict[int, dict[str, Any]] = {}
    segment = -1
    for record in read_records(path):
        if (
            record[names.SEGMENT] > segment
        ):  # from here on, what the earlier segments did later never happened
            segment = record[names.SEGMENT]
            kept = {step: old for step, old in kept.items() if step < record[names.STEP]}
        kept[record[names.STEP]] = record
    return [kept[step] for step in sorted(kept)]


def _cut_torn_line(path: Path) -> int:
    """Truncate after the last newline; the number of bytes that were cut off."""
    if not path.exists():
        return 0
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            begin = max(0, end - 65536)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            file.truncate(end)
        return size - end
