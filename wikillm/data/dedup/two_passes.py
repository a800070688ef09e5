"""From sources to a drop-list: sign what is missing, decide, write `drops.bin`. One process at a time, resumable.

Everything lies in `.dedup-KEY` beside the store, KEY being a hash of all that decides the drop-list. Preparations that
differ in tokenizer or split alone share it, so it has a turn of its own (`.dedup-KEY.lock`). The signatures go
when the list stands. With `data.max_text_bytes` the pass stops when enough text is left, so a small part of a large dump
costs little: what is decided for a document depends on those before it only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wikillm.core.errors import DataError, MachineError
from wikillm.core.files import STAGING_SUFFIX, sha256_file, write_atomic, write_json
from wikillm.core.log import say
from wikillm.data.dedup.duplicates import find_copies
from wikillm.data.dedup.minhash import SignedShard, SignJob, read_signed
from wikillm.data.filters.documents import CleanJob
from wikillm.data.filters.drop_list import DROP, DROP_LIST_NAME, EXACT, DropList
from wikillm.data.funnel import merged
from wikillm.data.sources.read import Cursor, RawShard, estimated_bytes, read_shards
from wikillm.data.types import SourceFile
from wikillm.data.workers.exclusive import exclusive
from wikillm.data.workers.pool import run_jobs
from wikillm.data.workers.progress import Progress, Work

_BAD_CHECK_RECORDS = 1000
_RECORD_NAME = "drops.json"


@dataclass
class FirstPass:
    """What the first pass reads, and how.

    Attributes:
        folder: where signatures and the drop-list go.
        similarity: of near copies; None finds exact copies only.
        wanted_text: bytes of kept text that are enough; None: all.
    """

    folder: Path
    sources: tuple[SourceFile, ...]
    clean: CleanJob
    shard_bytes: int
    max_document_bytes: int
    max_bad_fraction: float
    workers: int
    threads: int
    similarity: float | None
    wanted_text: int | None
    relay: Path | None = None
    _signed: list[SignedShard] = field(default_factory=list)
    _text_bytes: int = 0  # these three are of `_signed`
    _bad_records: int = 0
    _read_records: int = 0
    _is_at_end: bool = False

    def ensure(self, *, is_main: bool = True) -> DropList:
        """The drop-list, made if need be. Raises DataError for what the sources hold, MachineError for want of room."""
        with exclusive(self.folder, "finding copies", is_main):
            known = self._known()
            if known is None:
                return self._make()
            with suppress(OSError):  # a pass that was killed right after its list stood
                self._forget_signatures()
            return known

    def _make(self) -> DropList:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(f"*{STAGING_SUFFIX}"):
                path.unlink(missing_ok=True)
        except OSError as error:
            got = f"{self.folder}: {error.strerror}"
            raise MachineError("The folder of the drop-list cannot be written.", got=got) from None
        say(
            "data: first of two passes, to find copies (data.dedup); the store is built in the second"
        )
        drops = self._decide()
        path = self.folder / DROP_LIST_NAME
        write_atomic(path, drops.tobytes())
        exact = int(np.count_nonzero(drops["percent"] == EXACT))
        found = DropList(path, sha256_file(path), exact, len(drops) - exact)
        write_json(
            self.folder / _RECORD_NAME,
            {"sha256": found.sha256, "exact": found.exact, "near": found.near},
        )
        self._forget_signatures()
        say(
            f"data: {exact:,} exact and {found.near:,} near copies among {self._documents():,} documents are left out"
        )
        return found

    def _known(self) -> DropList | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            value = json.loads((self.folder / _RECORD_NAME).read_text(encoding="utf-8"))
            path = self.folder / DROP_LIST_NAME
            if sha256_file(path) == value["sha256"] and path.stat().st_size % DROP.itemsize == 0:
                return DropList(path, value["sha256"], value["exact"], value["near"])
        return None

    def _documents(self) -> int:
        return sum(info.documents for info in self._signed)

    def _decide(self) -> np.ndarray:
        """Sign until what is kept suffices, or to the end. The shards signed depend on the sources alone."""
        target = self.wanted_text
        while True:
            self._sign(target)
            drops = find_copies(self.folder, self._signed, self.similarity)
            total = self._text_bytes
            kept = total - int(drops["text_bytes"].sum(dtype=np.int64))
            if self._is_at_end or self.wanted_text is None or kept >= self.wanted_text:
                return drops
            target = total + self.wanted_text - kept

    def _sign(self, target: int | None) -> None:
        """Sign the next shards, until there are `target` bytes of text."""
        done = read_signed(self.folder, self.similarity is not None)
        job = SignJob(self.folder, self.clean, self.similarity is not None)
        progress = Progress("finding copies", estimated_bytes(self.sources), relay=self.relay)
        cursor = self._signed[-1].end if self._signed else Cursor()
        while (info := done.get(len(self._signed))) is not None and info.start == cursor:
            progress.add(Work(info.end.position - info.start.position, info.documents))
            if self._take(info, target):
                return progress.finish()
            cursor = info.end
        number = len(self._signed)
        sources, limit, threads = self.sources, self.max_document_bytes, self.threads
        raws = read_shards(sources, self.shard_bytes, limit, cursor, number, threads=threads)
        ready: dict[int, SignedShard] = {}
        with closing(
            run_jobs(job, _missing(raws, done, ready), self.workers, progress.add, progress.tick)
        ) as results:
            for info in results:
                if self._take_all({**ready, info.number: info}, target):
                    return progress.finish()
        if not self._take_all(ready, target):
            self._is_at_end = True
        return progress.finish()

    def _take_all(self, found: dict[int, SignedShard], target: int | None) -> bool:
        while (info := found.get(len(self._signed))) is not None:
            if self._take(info, target):
                return True
        return False

    def _take(self, info: SignedShard, target: int | None) -> bool:
        """Add the next shard; True when there is enough."""
        self._signed.append(info)
        self._text_bytes += info.text_bytes
        self._bad_records += info.funnel.bad_records
        self._read_records += info.funnel.read_records
        bad, read = self._bad_records, self._read_records
        if bad > self.max_bad_fraction * read and read >= _BAD_CHECK_RECORDS:
            dropped = merged(shard.funnel for shard in self._signed).dropped
            lines = [f"{line.records:>8,}  {line.reason}" for line in dropped if line.is_bad]
            raise DataError(
                f"{bad:,} of {read:,} records cannot be read: more than data.max_bad_fraction={self.max_bad_fraction:g}.",
                got="\n".join(lines),
                fix="data.dedup=none shows where they are; mend the source, or raise data.max_bad_fraction",
            )
        return target is not None and self._text_bytes >= target

    def _forget_signatures(self) -> None:
        for path in self.folder.iterdir():
            if path.name not in (DROP_LIST_NAME, _RECORD_NAME):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _missing(
    raws: Iterator[RawShard], done: dict[int, SignedShard], ready: dict[int, SignedShard]
) -> Iterator[RawShard]:
    """The shards that are not signed yet; the others go to `ready`."""
    for raw in raws:
        earlier = done.get(raw.number)
        if earlier is not None and (earlier.start, earlier.end) == (raw.start, raw.end):
            ready[raw.number] = earlier
        else:
            yield raw
