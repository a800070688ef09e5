"""One shard, from raw records to files. Runs in the worker processes; a pure function of its records.

Documents go to `val` when the top of their 64-bit content hash falls below the held-out share, so equal texts are
always on one side, and stay there when data is added. Text is encoded in batches of about 1 MiB of source: that
bounds the memory of a worker, whatever the size of the shard.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from bisect import bisect_right
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import DataError
from wikillm.core.files import STAGING_SUFFIX, rename_durably, write_json
from wikillm.data.filters.documents import CleanJob, content_hashes
from wikillm.data.funnel import Tally
from wikillm.data.sources.read import RawShard
from wikillm.data.store.manifest import ShardInfo, ShardSplit
from wikillm.data.store.store import INDEX, SPLITS, TOKEN, shard_path
from wikillm.data.text.attribution import write_titles
from wikillm.data.tokenizer.encoders import FIRST_DOCUMENTS, TRUTH, CheckedEncoder, open_encoder
from wikillm.data.types import CleanedDocuments, DroppedItem, TokenizedDocument
from wikillm.data.workers.progress import Report, Work

BATCH_BYTES = 1 << 20
MAX_QUARANTINED = 1000  # bad records kept per shard; all are counted
HEAD_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Build one shard of the store: clean, encode, write, and last of all its record `shards/NNNNN.json`."""

    store: Path
    clean: CleanJob
    val_fraction: float
    text_budget: int | None = None  # bytes of text; the first document beyond it ends the shard
    backend: str = TRUTH  # as `choose_backend` names it
    check_first: int = (
        FIRST_DOCUMENTS  # documents of shard 0 whose ids are all compared with the truth
    )

    def __call__(self, raw: RawShard, report: Report) -> ShardInfo:
        tally = Tally()
        bad: list[dict[str, object]] = []
        writers = {split: SplitWriter(self.store, split, raw.number) for split in SPLITS}
        tokenizer = _open_encoder(self.backend, self.store / "tokenizer")
        encoder = _Encoder(
            tokenizer,
            writers,
            self.val_fraction,
            report,
            self.check_first if raw.number == 0 else 1,
        )
        text_bytes, is_cut = 0, False
        pages: list[tuple[int, int, bytes]] = []
        for batch in self.clean.batches(raw):
            if self.text_budget is not None:
                ends = list(
                    accumulate((len(text.encode()) for text in batch.texts), initial=text_bytes)
                )
                within = bisect_right(ends, self.text_budget) - 1
                if within < len(batch.texts):
                    batch, is_cut = batch.first(within), True
                text_bytes = ends[within]
            tally.count(batch)
            is_row = self.clean.formats[batch.source] == "csv"
            bad += [
                _quarantined(batch.source, item, is_row)
                for item in batch.dropped
                if item.why.is_bad
            ]
            del bad[MAX_QUARANTINED:]
            if self.clean.formats[batch.source] == "mediawiki":
                pages += [
                    (batch.source, *page)
                    for page in zip(batch.offsets, batch.payloads, strict=True)
                ]
            encoder.add(batch)
            if is_cut:
                break
        encoder.flush()
        splits = {split: writer.finish() for split, writer in writers.items()}
        write_titles(self.store, raw.number, pages)
        info = ShardInfo(
            raw.number, raw.start, raw.end, is_cut, tally.funnel(), splits, self.backend
        )
        write_json(shard_record_path(self.store, raw.number), {**asdict(info), "bad": bad})
        return info


def shard_record_path(store: Path, number: int) -> Path:
    return store / "shards" / f"{number:05d}.json"


def _quarantined(source: int, item: DroppedItem, is_row: bool) -> dict[str, object]:
    record = (
        item.payload.rpartition(b"\n")[0] if is_row else item.payload
    )  # a row travels with its header
    return {
        "source": source,
        "offset": item.offset,
        "reason": item.why.reason,
        "detail": item.why.detail,
        "head": record[:HEAD_CHARACTERS].decode("utf-8", errors="backslashreplace"),
    }


_open_encoder = lru_cache(maxsize=1)(open_encoder)


class _Encoder:
    """Collects documents, encodes them in batches, hands them to the split that their hash names."""

    def __init__(
        self,
        encoder: CheckedEncoder,
        writers: dict[str, SplitWriter],
        val_fraction: float,
        report: Report,
        check_first: int,
    ) -> None:
        self._encoder, self._tokenizer, self._writers, self._report = (
            encoder,
            encoder.truth,
            writers,
            report,
        )
        self._check_first = check_first
        self._val_below = np.uint64(int(val_fraction * 2**64))
        self._sources: list[int] = []
        self._offsets: list[int] = []
        self._texts: list[str] = []
        self._source_bytes = 0

    def add(self, batch: CleanedDocuments) -> None:
        self._sources += [batch.source] * len(batch.texts)
        self._offsets += batch.offsets
        self._texts += batch.texts
        self._source_bytes += batch.source_bytes
        if self._source_bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Encode what was collected, all documents of a batch at once: a loop over documents costs more than encoding."""
        texts = self._texts
        if not texts:
            self._tell(0, 0)
            return
        encoded = self._encoder.encode_batch(texts)
        hashes, lengths = content_hashes(
            texts
        )  # after encoding: fastokens leaves UTF-8 in the strings
        self._encoder.check(texts, encoded, self._check_first, hashes)
        self._check_first = max(0, self._check_first - len(texts))
        if len(encoded.ids) and int(encoded.ids.max()) >= self._tokenizer.length:
            raise DataError(
                "A tokenizer gave an id beyond its own vocabulary.", got=f"{int(encoded.ids.max())}"
            )
        ids = encoded.with_last(self._tokenizer.eos_id)
        rows = np.empty(len(texts), dtype=INDEX)
        rows["end"] = ids.ends[1:] - ids.ends[:-1]
        rows["hash"] = hashes
        rows["offset"], rows["source"] = self._offsets, self._sources
        rows["text_bytes"] = lengths
        is_val = hashes < self._val_below
        for split, chosen in (("train", ~is_val), ("val", is_val)):
            if chosen.any():
                mine = (
                    ids.ids
                    if chosen.all()
                    else ids.ids[np.repeat(chosen, rows["end"].astype(np.int64))]
                )
                self._writers[split].add_all(mine, rows[chosen])
        self._tell(sum(lengths), len(ids.ids))

    def _tell(self, text_bytes: int, tokens: int) -> None:
        self._report(Work(self._source_bytes, len(self._texts), text_bytes, tokens))
        self._sources, self._offsets, self._texts = [], [], []
        self._source_bytes = 0


class SplitWriter:
    """Writes NNNNN.tok as documents come, NNNNN.idx at the end; both appear under their names when complete.

    One that is given up, as by a worker whose parent died, takes its unfinished file along.
    """

    def __init__(self, store: Path, split: str, number: int) -> None:
        self._paths = {kind: shard_path(store, split, number, kind) for kind in ("tok", "idx")}
        self._paths["tok"].parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open(_staged(self._paths["tok"]), "wb")  # noqa: SIM115  closed in finish
        self._forget = weakref.finalize(self, _staged(self._paths["tok"]).unlink, missing_ok=True)
        self._forget.atexit = (
            False  # a copy of this process (a fork) that ends does not own the file
        )
        self._digest = hashlib.sha256()
        self._tokens = 0
        self._text_bytes = 0
        self._rows: list[npt.NDArray[Any]] = []

    def add(self, document: TokenizedDocument) -> None:
        row = (
            len(document.ids),
            document.content_hash,
            document.offset,
            document.source,
            document.text_bytes,
        )
        self.add_all(document.ids, np.array([row], dtype=INDEX))

    def add_all(self, ids: npt.NDArray[np.uint32], rows: npt.NDArray[Any]) -> None:
        """Documents one after the other: their ids, and an `INDEX` entry each whose `end` is the length alone."""
        content = ids.astype(TOKEN, copy=False).data
        self._file.write(content)
        self._digest.update(content)
        rows["end"] = np.cumsum(rows["end"]) + np.uint64(self._tokens)
        self._tokens += len(ids)
        self._text_bytes += int(rows["text_bytes"].sum(dtype=np.int64))
        self._rows.append(rows)

    def finish(self) -> ShardSplit:
        _close_durably(self._file)
        rename_durably(_staged(self._paths["tok"]), self._paths["tok"])
        self._forget.detach()
        index = np.concatenate([np.empty(0, dtype=INDEX), *self._rows]).tobytes()
        with open(_staged(self._paths["idx"]), "wb") as file:
            file.write(index)
            _close_durably(file)
        rename_durably(_staged(self._paths["idx"]), self._paths["idx"])
        return ShardSplit(
            tokens=self._tokens,
            documents=len(index) // INDEX.itemsize,
            text_bytes=self._text_bytes,
            tok_sha256=self._digest.hexdigest(),
            idx_sha256=hashlib.sha256(index).hexdigest(),
        )


def _staged(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{STAGING_SUFFIX}")


def _close_durably(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
