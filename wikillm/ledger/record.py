"""Read and write RUN/ledger.jsonl, to which rank 0 appends a line for each optimizer step.

    {"segment":1,"step":40,"samples":320,"checkpoint":"checkpoint-40","world":2,"order":{...},...}
    {"step":41,"first":320,"stop":328,"digest":"5c6d...","loss":4.81,"crc":2930261}
    {"skipped":[328,344],"reason":"loss spike at step 42","crc":7155301}

A segment contains the steps of one process start, which begins at `step` and `samples` of its
checkpoint. It supersedes the lines of earlier segments after this step; they stay in the file.
`first` and `stop` are sample indices, `digest` comes from `ledger.digest`, and `loss` is the mean
since the last logged loss. Each line ends with the CRC-32 of the text before it. Lines are never
rewritten. If a kill cuts the last line short, the next start removes it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from wikillm.core.errors import CheckpointError
from wikillm.core.faults import is_of_the_file
from wikillm.core.files import cut_torn_line, fsync_path, read_regular
from wikillm.core.log import warn

NAME = "ledger.jsonl"
_CRC = b',"crc":'


class Segment(NamedTuple):
    """A process start. `order` holds the values that decide the tokens of a sample."""

    number: int
    step: int
    samples: int
    checkpoint: str | None
    world: int
    order: dict[str, Any]
    time: float

    def to_json(self) -> dict[str, Any]:
        fields = self._asdict()
        return {"segment": fields.pop("number"), **fields}


class StepLine(NamedTuple):
    """An optimizer step and the samples [first, stop) that it consumed."""

    step: int
    first: int
    stop: int
    digest: int
    loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        fields = self._asdict() | {"digest": f"{self.digest:016x}"}
        if self.loss is None:
            del fields["loss"]
        return fields


class SkippedWindow(NamedTuple):
    """Samples [first, stop) that were skipped on purpose."""

    first: int
    stop: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"skipped": [self.first, self.stop], "reason": self.reason}


Entry = Segment | StepLine | SkippedWindow


@dataclass(slots=True)
class History:
    """The ledger without superseded lines: the steps that led to the current weights."""

    segments: list[Segment] = field(default_factory=list)
    steps: list[StepLine] = field(default_factory=list)
    skipped: list[SkippedWindow] = field(default_factory=list)
    superseded: int = 0

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> History:
        history = cls()
        for entry in entries:
            if isinstance(entry, StepLine):
                history.steps.append(entry)
            elif isinstance(entry, SkippedWindow):
                history.skipped.append(entry)
            else:
                history._begin(entry)
        return history

    def _begin(self, segment: Segment) -> None:
        self.segments.append(segment)
        while self.steps and self.steps[-1].step > segment.step:
            self.steps.pop()
            self.superseded += 1
        self.skipped = [window for window in self.skipped if window.first < segment.samples]


class LedgerWriter:
    """Appends to the ledger of a run. Created when training starts. (rank 0)

    A file with a damaged line is renamed, with a warning, and a new ledger begins. If a write
    fails, one warning is logged, and the lines are written with a later flush.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = bytearray()
        self._has_warned = False
        cut_torn_line(path)
        try:
            self._history = History.of(read_ledger(path)) if path.is_file() else History()
        except CheckpointError as error:
            renamed = _free_name(path)
            path.rename(renamed)
            warn(f"{error}\n  the damaged file is kept as {renamed.name}; a new ledger begins")
            self._history = History()

    def begin(self, **values: Any) -> None:
        """Begin a segment with these values (see `Segment`)."""
        segment = Segment(len(self._history.segments), **values)
        last_step = self._history.steps[-1].step if self._history.steps else 0
        if segment.step > last_step:
            warn(
                f"{self.path} has no record of steps {last_step + 1:,} to {segment.step:,}: "
                f"`wikillm audit` can prove only later steps"
            )
        self.add(segment)

    def add(self, entry: Entry) -> None:
        """Add an entry, which the next `flush` writes."""
        self._pending += _encode(entry)

    def flush(self, *, durable: bool = False) -> None:
        """Write the added entries; with `durable`, wait until they are on the disk."""
        try:
            # O_NONBLOCK: a pipe without a reader is an error, instead of a wait.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
            fd = os.open(self.path, flags, 0o644)
            try:
                self._write(fd)
                if durable:
                    os.fsync(fd)
                    fsync_path(self.path.parent)
            finally:
                os.close(fd)
        except OSError as error:
            if not self._has_warned:
                warn(f"{self.path} cannot be written ({error}); its lines are kept in memory")
            self._has_warned = True

    def _write(self, fd: int) -> None:
        if not self._pending:
            return
        size = os.fstat(fd).st_size
        if os.write(fd, self._pending) != len(self._pending):
            os.ftruncate(fd, size)  # remove the incomplete line
            raise OSError("only a part of the lines could be written")
        self._pending.clear()


def read_ledger(path: Path) -> list[Entry]:
    """All complete lines of a ledger.

    Raises CheckpointError when the file is missing, or a line is damaged.
    """
    try:
        content = read_regular(path, max_bytes=None)  # it grows with the steps
    except OSError as error:
        if not is_of_the_file(error):
            raise
        raise CheckpointError(
            f"There is no ledger at {path}.",
            got=error.strerror,
            fix="resume the run to begin a ledger (runs of earlier versions have none)",
        ) from None
    entries: list[Entry] = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            entries.append(_decode(line))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"The ledger {path} is damaged.", got=f"line {number}: {error!r}"
            ) from None
    return entries


def _encode(entry: Entry) -> bytes:
    body = orjson.dumps(entry.to_json())[:-1]
    return b"%s%s%d}\n" % (body, _CRC, zlib.crc32(body))


def _decode(line: bytes) -> Entry:
    body, _, crc = line.rpartition(_CRC)
    if int(crc[:-1] or -1) != zlib.crc32(body):
        raise ValueError("the checksum does not match the line")
    value = orjson.loads(body + b"}")
    if "digest" in value:
        digest = int(value["digest"], 16)
        return StepLine(value["step"], value["first"], value["stop"], digest, value.get("loss"))
    if "skipped" in value:
        first, stop = value["skipped"]
        return SkippedWindow(first, stop, value["reason"])
    value["number"] = value.pop("segment")
    return Segment(**value)


def _free_name(path: Path) -> Path:
    numbers = range(1, 1 << 31)
    names = (path.with_name(f"{path.stem}.damaged-{n}{path.suffix}") for n in numbers)
    return next(name for name in names if not name.exists())
