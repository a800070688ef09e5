"""Where measurements go: the `Sink` protocol, `metrics.jsonl` and `events.jsonl`.

All sinks are on global rank 0. A sink never stops training: an error inside is logged once. The
files are append-only, one flushed line per record. A resumed run adds records with the next
`segment`; if a step has several records, `read_metrics` keeps that of the highest segment. A line
torn by a crash is cut off at the next start.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wikillm.core.files import cut_torn_line, open_regular, read_regular
from wikillm.core.log import warn
from wikillm.observe import names


@dataclass(frozen=True, slots=True)
class Sample:
    """A generated text, without its prompt."""

    prompt: str
    text: str


class Sink(Protocol):
    """A destination of measurements. (rank 0)"""

    def start(self, config: Mapping[str, Any]) -> None:
        """Called when the run begins or resumes; `config` is the resolved configuration."""

    def log(self, step: int, values: Mapping[str, float | None], kind: str | None = None) -> None:
        """Values of a logging step, or of an event such as `names.EVAL`."""

    def text(self, step: int, samples: Sequence[Sample]) -> None:
        """Sample generations."""

    def finish(self, exit_code: int, error: str | None = None) -> None:
        """Called when the run ends; returns within a limited time. May be called again."""


class JsonlSink:
    """`metrics.jsonl` and `events.jsonl` in the run directory."""

    def __init__(self, folder: Path) -> None:
        self._metrics = folder / "metrics.jsonl"
        self._events = folder / "events.jsonl"
        self.segment = 0  # number of earlier starts in the run directory
        self._has_warned = False
        self._is_finished = False

    def start(self, config: Mapping[str, Any]) -> None:
        """Cut off torn lines and begin the next segment. `config` is stored elsewhere."""
        torn: dict[str, int] = {}
        try:
            self._metrics.parent.mkdir(parents=True, exist_ok=True)
            for file in (self._metrics, self._events):
                if size := cut_torn_line(file):
                    torn[file.name] = size
            events = read_records(self._events)
            starts = [event for event in events if event.get(names.KIND) == names.START]
            last = max((int(event.get(names.SEGMENT) or 0) for event in starts), default=-1)
            self.segment = last + 1
        except OSError as error:
            self._warn_once(self._metrics, error)
        extra: dict[str, Any] = {"torn_bytes_removed": torn} if torn else {}
        plan = config.get("plan")
        if plan is not None:
            extra[names.WORLD_SIZE] = plan["world_size"]
        self._append(self._events, {names.KIND: names.START, **extra})

    def log(self, step: int, values: Mapping[str, float | None], kind: str | None = None) -> None:
        record = {names.STEP: step, **finite(values)}
        if kind is None:
            self._append(self._metrics, record)
        else:
            self._append(self._events, {names.KIND: kind, **record})

    def event(self, kind: str, step: int, record: Mapping[str, Any]) -> None:
        """Write an event whose values are any JSON, not only numbers."""
        self._append(self._events, {names.KIND: kind, names.STEP: step, **record})

    def text(self, step: int, samples: Sequence[Sample]) -> None:
        texts = [{"prompt": sample.prompt, "text": sample.text} for sample in samples]
        self._append(self._events, {names.KIND: names.SAMPLES, names.STEP: step, "samples": texts})

    def finish(self, exit_code: int, error: str | None = None) -> None:
        if not self._is_finished:
            self._is_finished = True
            record = {names.KIND: names.FINISH, "exit_code": exit_code, "error": error}
            self._append(self._events, record)

    def _append(self, path: Path, record: Mapping[str, Any]) -> None:
        stamped = {**record, names.SEGMENT: self.segment, names.TIME: round(time.time(), 3)}
        text = json.dumps(stamped, ensure_ascii=False, allow_nan=False)
        line = text.encode(errors="replace") + b"\n"
        try:
            # O_NONBLOCK: a pipe without a reader is an error, instead of a wait.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
            fd = os.open(path, flags, 0o644)
            try:
                size = os.fstat(fd).st_size
                if os.write(fd, line) != len(line):
                    os.ftruncate(fd, size)  # the disk is full: leave no partial record
                    raise OSError("the disk took only a part of the record")
            finally:
                os.close(fd)
        except OSError as error:
            self._warn_once(path, error)

    def _warn_once(self, path: Path, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"{path} cannot be written ({error.strerror or error}); "
                "training continues, and records are lost until it can be written"
            )


def finite(values: Mapping[str, float | None]) -> dict[str, Any]:
    """`values` as JSON: a value that is not finite becomes null and is named in `nonfinite`."""
    plain: dict[str, Any] = {}
    nonfinite: dict[str, str] = {}
    for name, value in values.items():
        # Scalars of NumPy or torch are not JSON.
        number = value if value is None or isinstance(value, int) else float(value)
        if number is not None and not math.isfinite(number):
            nonfinite[name] = str(number)
            number = None
        plain[name] = number
    return {**plain, names.NONFINITE: nonfinite} if nonfinite else plain


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a file, in order. Lines that a crash left torn or zeroed are skipped."""
    return list(_records(read_regular(path, max_bytes=None))) if path.is_file() else []


def _records(data: bytes) -> Iterator[dict[str, Any]]:
    """The records of complete lines; text after the last newline is skipped."""
    for line in data.split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def read_new_records(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The complete records from byte `offset` on, and the offset of the next records.

    A file that became shorter (a torn line was cut off) is read from its new end.
    """
    if not path.is_file():
        return [], offset
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(min(offset, size))
            data = file.read()
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return list(_records(whole)), min(offset, size) + len(whole)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One record per step, ascending. If a resumed run repeated a step, the later record counts."""
    return kept_records(read_records(path))


def kept_records(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that `read_metrics` keeps; records without step and segment are skipped."""
    kept: dict[int, dict[str, Any]] = {}
    segment = -1
    for record in records:
        step = record.get(names.STEP)
        own = record.get(names.SEGMENT)
        if type(step) is not int or type(own) is not int:
            continue
        if own > segment:  # a new segment replaces earlier records from its first step on
            segment = own
            kept = {before: old for before, old in kept.items() if before < step}
        kept[step] = record
    return [kept[step] for step in sorted(kept)]
