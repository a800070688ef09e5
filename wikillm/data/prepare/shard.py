"""Build the files of one shard from its raw records, in a worker process.

The files depend only on the records and the settings. The content hash of a document decides its
split (`validation_split`). Text is encoded in batches of about 1 MiB of source, so the memory of a
worker does not grow with the size of a shard.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from wikillm.core.errors import DataError
from wikillm.core.files import write_json
from wikillm.data.filters.documents import CleanJob, content_hashes
from wikillm.data.funnel import Tally
from wikillm.data.prepare.quarantine import MAX_PER_SHARD, quarantined
from wikillm.data.prepare.validation_split import is_held_out
from wikillm.data.sources.read import RawShard
from wikillm.data.store.manifest import ShardInfo
from wikillm.data.store.store import INDEX, SPLITS
from wikillm.data.store.writer import SplitWriter, shard_record_path
from wikillm.data.text.attribution import write_titles
from wikillm.data.tokenizer.encoders import FIRST_DOCUMENTS, REFERENCE, CheckedEncoder, open_encoder
from wikillm.data.types import CleanedDocuments
from wikillm.data.workers.progress import Report, Work

BATCH_BYTES = 1 << 20

_open_encoder = lru_cache(maxsize=1)(open_encoder)


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Builds one shard: clean, encode, write. Its record `shards/NNNNN.json` is written last.

    Attributes:
        text_budget: number of bytes of text after which the shard ends; None for no limit.
        backend: name of the encoder, from `choose_backend`.
        check_first: number of documents of shard 0 whose ids are compared with `tokenizers`.
    """

    store: Path
    clean: CleanJob
    val_fraction: float
    text_budget: int | None = None
    backend: str = REFERENCE
    check_first: int = FIRST_DOCUMENTS

    def __call__(self, raw: RawShard, report: Report) -> ShardInfo:
        tally = Tally()
        bad: list[dict[str, object]] = []
        pages: list[tuple[int, int, bytes]] = []
        writers = {split: SplitWriter(self.store, split, raw.number) for split in SPLITS}
        checked = _open_encoder(self.backend, self.store / "tokenizer")
        check_first = self.check_first if raw.number == 0 else 1
        encoder = _Encoder(checked, writers, self.val_fraction, report, check_first)
        remaining = self.text_budget
        is_cut = False
        for batch in self.clean.batches(raw):
            if remaining is not None:
                ends = list(accumulate((len(text.encode()) for text in batch.texts), initial=0))
                fitting = bisect_right(ends, remaining) - 1
                remaining -= ends[fitting]
                is_cut = fitting < len(batch.texts)
                if is_cut:
                    batch = batch.first(fitting)
            tally.count(batch)
            format = self.clean.formats[batch.source]
            unreadable = (item for item in batch.dropped if item.why.is_bad)
            bad += [quarantined(batch.source, item, format == "csv") for item in unreadable]
            del bad[MAX_PER_SHARD:]
            if format == "mediawiki":
                titled = zip(batch.offsets, batch.payloads, strict=True)
                pages += [(batch.source, *page) for page in titled]
            encoder.add(batch)
            if is_cut:
                break
        encoder.flush()
        splits = {split: writer.finish() for split, writer in writers.items()}
        write_titles(self.store, raw.number, pages)
        # The record is written last, because it marks the shard as finished.
        info = ShardInfo(
            raw.number, raw.start, raw.end, is_cut, tally.funnel(), splits, self.backend
        )
        write_json(shard_record_path(self.store, raw.number), {**asdict(info), "bad": bad})
        return info


class _Encoder:
    """Collects documents, encodes them in batches and writes each document to its split."""

    def __init__(
        self,
        encoder: CheckedEncoder,
        writers: dict[str, SplitWriter],
        val_fraction: float,
        report: Report,
        check_first: int,
    ) -> None:
        self._encoder = encoder
        self._writers = writers
        self._val_fraction = val_fraction
        self._report = report
        self._check_first = check_first
        self._clear()

    def _clear(self) -> None:
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
        """Encode and write the collected documents."""
        text_bytes = tokens = 0
        if self._texts:
            text_bytes, tokens = self._encode()
        self._report(Work(self._source_bytes, len(self._texts), text_bytes, tokens))
        self._clear()

    def _encode(self) -> tuple[int, int]:
        """Encode and write the batch; return its bytes of text and its tokens.

        The whole batch is encoded at once, which is faster than a loop over documents.
        """
        texts = self._texts
        tokenizer = self._encoder.reference
        encoded = self._encoder.encode_batch(texts)
        # Hash after encoding, when fastokens has cached the UTF-8 form inside the strings.
        hashes, lengths = content_hashes(texts)
        self._encoder.check(texts, encoded, self._check_first, hashes)
        self._check_first = max(0, self._check_first - len(texts))
        largest = int(encoded.ids.max(initial=0))
        if largest >= tokenizer.length:
            what = "The tokenizer returned an id outside its own vocabulary."
            raise DataError(what, got=str(largest))
        ids = encoded.with_last(tokenizer.eos_id)
        rows = np.empty(len(texts), dtype=INDEX)
        rows["end"] = ids.ends[1:] - ids.ends[:-1]
        rows["hash"] = hashes
        rows["offset"] = self._offsets
        rows["source"] = self._sources
        rows["text_bytes"] = lengths
        is_val = is_held_out(hashes, self._val_fraction)
        for split, chosen in (("train", ~is_val), ("val", is_val)):
            if not chosen.any():
                continue
            own = ids.ids
            if not chosen.all():
                own = ids.ids[np.repeat(chosen, rows["end"].astype(np.int64))]
            self._writers[split].add_all(own, rows[chosen])
        return sum(lengths), len(ids.ids)
