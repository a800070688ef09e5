"""Build the drop-list: hash the shards, find duplicates, write `drops.bin`. It can be resumed.

All files are in `.dedup-KEY` beside the store; KEY is a hash of everything that determines the
drop-list. Preparations that differ only in tokenizer or split share the folder, so it has its own
lock (`.dedup-KEY.lock`). The signatures are removed when the list is complete. With
`data.max_text_bytes` the pass ends when enough text is kept, so a small part of a large dump takes
little time. Later documents do not change which earlier documents are duplicates.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wikillm.core.errors import MachineError
from wikillm.core.files import STAGING_SUFFIX, sha256_file, write_atomic, write_json
from wikillm.core.log import say
from wikillm.data.dedup.duplicates import find_duplicates
from wikillm.data.dedup.minhash import MinHashJob, MinHashShard, read_minhash_shards
from wikillm.data.filters.bad_records import BadRecords
from wikillm.data.filters.documents import CleanJob
from wikillm.data.filters.drop_list import DROP, DROP_LIST_NAME, EXACT, DropList
from wikillm.data.sources.read import ShardReader, estimated_bytes
from wikillm.data.sources.shard_loop import run_shards
from wikillm.data.workers.exclusive import exclusive
from wikillm.data.workers.progress import Progress, Work

_RECORD_NAME = "drops.json"


@dataclass
class FirstPass:
    """The first pass over the sources, which finds the duplicates.

    Attributes:
        folder: folder of the signatures and the drop-list.
        similarity: least similarity of near duplicates; None finds exact duplicates only.
        wanted_text: bytes of text to keep, after which the pass ends; None reads all sources.
    """

    folder: Path
    reader: ShardReader
    clean: CleanJob
    max_bad_fraction: float
    workers: int
    similarity: float | None
    wanted_text: int | None
    relay: Path | None = None
    _shards: list[MinHashShard] = field(default_factory=list)  # hashed so far

    def ensure(self, *, is_main: bool = True) -> DropList:
        """The drop-list, which is built if it is missing.

        Raises DataError for bad sources, MachineError for a folder that cannot be written.
        """
        with exclusive(self.folder, "finding duplicates", is_main):
            finished = self._finished()
            if finished is None:
                return self._make()
            with suppress(OSError):  # left by a pass that was killed after its list was complete
                self._remove_signatures()
            return finished

    def _make(self) -> DropList:
        # Remove half-written files of a killed pass.
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(f"*{STAGING_SUFFIX}"):
                path.unlink(missing_ok=True)
        except OSError as error:
            got = f"{self.folder}: {error.strerror}"
            raise MachineError("The folder of the drop-list cannot be written.", got=got) from None
        # Write the list, then its record: a list without a record is built again.
        say("data: first of two passes, to find duplicates (data.dedup)")
        drops = self._find_duplicates()
        path = self.folder / DROP_LIST_NAME
        write_atomic(path, drops.tobytes())
        exact = int(np.count_nonzero(drops["percent"] == EXACT))
        result = DropList(path, sha256_file(path), exact, len(drops) - exact)
        record = {"sha256": result.sha256, "exact": result.exact, "near": result.near}
        write_json(self.folder / _RECORD_NAME, record)
        self._remove_signatures()
        documents = sum(shard.documents for shard in self._shards)
        counts = f"{exact:,} exact and {result.near:,} near duplicates"
        say(f"data: {counts} among {documents:,} documents are dropped")
        return result

    def _finished(self) -> DropList | None:
        """The complete drop-list of an earlier pass."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((self.folder / _RECORD_NAME).read_text(encoding="utf-8"))
            path = self.folder / DROP_LIST_NAME
            if sha256_file(path) == record["sha256"] and path.stat().st_size % DROP.itemsize == 0:
                return DropList(path, record["sha256"], record["exact"], record["near"])
        return None

    def _find_duplicates(self) -> np.ndarray:
        """Hash shards until enough text is kept; returns the duplicates (dtype `DROP`).

        An interrupted pass hashes the same number of shards as an uninterrupted pass.
        """
        wanted = self.wanted_text
        target = wanted  # bytes of text to hash before the kept text is counted
        hashed = 0  # bytes of text in the shards so far
        # Closing the generator stops the workers when there is enough text.
        with closing(self._hashed_shards()) as shards:
            for shard in shards:
                self._shards.append(shard)
                hashed += shard.text_bytes
                if wanted is None or target is None or hashed < target:
                    continue
                drops = find_duplicates(self.folder, self._shards, self.similarity)
                kept = hashed - int(drops["text_bytes"].sum(dtype=np.int64))
                if kept >= wanted:
                    return drops
                target = hashed + wanted - kept
        return find_duplicates(self.folder, self._shards, self.similarity)

    def _hashed_shards(self) -> Generator[MinHashShard, None, None]:
        """All shards in order; raises DataError when too many records cannot be read."""
        with_minima = self.similarity is not None
        total = estimated_bytes(self.reader.sources)
        progress = Progress("finding duplicates", total, relay=self.relay)
        shards = run_shards(
            MinHashJob(self.folder, self.clean, with_minima),
            self.reader.read,
            read_minhash_shards(self.folder, with_minima),
            self.workers,
            progress,
            on_resume=lambda _, cursor: progress.add(Work(cursor.position)),
        )
        bad = BadRecords(self.max_bad_fraction)
        fix = "use data.dedup=none to see where they are; repair the source, or raise "
        fix += "data.max_bad_fraction"
        try:
            with closing(shards):
                for shard in shards:
                    bad.add(shard.funnel, shard.end.position - shard.start.position)
                    bad.check(at_end=False, fix=fix)
                    yield shard
        finally:
            progress.finish()

    def _remove_signatures(self) -> None:
        for path in self.folder.iterdir():
            if path.name not in (DROP_LIST_NAME, _RECORD_NAME):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
