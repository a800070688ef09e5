"""Build the files of one shard from its raw records, in a worker process.

The files depend only on the records and the settings. The content hash of a document decides its
split (`validation_split`). Text is encoded and written in groups of record batches, about 1 MiB
of source at a time, so the memory of a worker does not grow with the size of a shard.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import DataError
from wikillm.core.files import write_json
from wikillm.data.filters.documents import CleanJob, content_hashes
from wikillm.data.funnel import Tally
from wikillm.data.prepare.quarantine import MAX_PER_SHARD, quarantined
from wikillm.data.prepare.validation_split import is_held_out
from wikillm.data.sources.read import RawShard
from wikillm.data.sources.record_batches import BATCH_BYTES
from wikillm.data.store.manifest import ShardInfo
from wikillm.data.store.store import INDEX, SPLITS
from wikillm.data.store.writer import SplitWriter, shard_record_path
from wikillm.data.text.attribution import write_titles
from wikillm.data.tokenizer.encoders import FIRST_DOCUMENTS, REFERENCE, CheckedEncoder, open_encoder
from wikillm.data.types import CleanedDocuments
from wikillm.data.workers.progress import Report, Work

_open_encoder = lru_cache(maxsize=1)(open_encoder)


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Builds one shard: clean, encode, write. Its record `shards/NNNNN.json` is written last.

    Attributes:
        text_budget: most bytes of text in the shard; None for no limit.
        encoder: name of the encoder, from `choose_encoder`.
        check_first: number of documents of shard 0 whose ids are compared with `tokenizers`.
    """

    store: Path
    clean: CleanJob
    val_fraction: float
    text_budget: int | None = None
    encoder: str = REFERENCE
    check_first: int = FIRST_DOCUMENTS

    def __call__(self, raw: RawShard, report: Report) -> ShardInfo:
        tally = Tally()
        bad: list[dict[str, object]] = []
        pages: list[tuple[int, int, bytes]] = []
        writers = {split: SplitWriter(self.store, split, raw.number) for split in SPLITS}
        encoder = _open_encoder(self.encoder, self.store / "tokenizer")
        to_check = self.check_first if raw.number == 0 else 1
        remaining = self.text_budget
        is_cut = False
        group: list[CleanedDocuments] = []  # encoded together, since batches of files may be small
        group_bytes = 0
        for batch in self.clean.batches(raw):
            # Drop the documents beyond the budget.
            if remaining is not None:
                ends = list(accumulate((len(text.encode()) for text in batch.texts), initial=0))
                fitting = bisect_right(ends, remaining) - 1
                remaining -= ends[fitting]
                is_cut = fitting < len(batch.texts)
                if is_cut:
                    batch = batch.first(fitting)
            # Keep the bad records for the quarantine, and the titles of wiki pages.
            tally.count(batch)
            format = self.clean.formats[batch.source]
            unreadable = (item for item in batch.dropped if item.why.is_bad)
            bad += [quarantined(batch.source, item, format == "csv") for item in unreadable]
            del bad[MAX_PER_SHARD:]
            if format == "mediawiki":
                titled = zip(batch.offsets, batch.payloads, strict=True)
                pages += [(batch.source, *page) for page in titled]
            group.append(batch)
            group_bytes += batch.source_bytes
            if group_bytes >= BATCH_BYTES:
                to_check -= self._write(group, encoder, writers, to_check, report)
                group = []
                group_bytes = 0
            if is_cut:
                break
        self._write(group, encoder, writers, to_check, report)
        splits = {split: writer.finish() for split, writer in writers.items()}
        write_titles(self.store, raw.number, pages)
        # The record is written last, because it marks the shard as finished.
        info = ShardInfo(
            raw.number, raw.start, raw.end, is_cut, tally.funnel(), splits, self.encoder
        )
        write_json(shard_record_path(self.store, raw.number), {**asdict(info), "bad": bad})
        return info

    def _write(
        self,
        batches: Sequence[CleanedDocuments],
        encoder: CheckedEncoder,
        writers: dict[str, SplitWriter],
        check_first: int,
        report: Report,
    ) -> int:
        """Encode the documents of several batches in one call, and write each to its split.

        The ids of the first `check_first` documents are compared with those of `tokenizers`.
        Returns the number of compared documents.
        """
        source_bytes = sum(batch.source_bytes for batch in batches)
        texts = [text for batch in batches for text in batch.texts]
        if not texts:
            report(Work(source_bytes))
            return 0
        encoded = encoder.encode_batch(texts)
        # Hash after encoding, when fastokens has cached the UTF-8 form inside the strings.
        hashes, lengths = content_hashes(texts)
        encoder.check(texts, encoded, check_first, hashes)
        # Describe each document in an index entry, and write it with its ids.
        tokenizer = encoder.reference
        largest = int(encoded.ids.max(initial=0))
        if largest >= tokenizer.length:
            what = "The tokenizer returned an id outside its own vocabulary."
            raise DataError(what, got=str(largest))
        documents = encoded.with_last(tokenizer.eos_id)
        rows = np.empty(len(texts), dtype=INDEX)
        rows["end"] = np.diff(documents.ends)
        rows["hash"] = hashes
        rows["offset"] = [offset for batch in batches for offset in batch.offsets]
        rows["source"] = [batch.source for batch in batches for _ in batch.texts]
        rows["text_bytes"] = lengths
        write_documents(writers, documents.ids, rows, self.val_fraction)
        report(Work(source_bytes, len(texts), sum(lengths), len(documents.ids)))
        return min(check_first, len(texts))


def write_documents(
    writers: dict[str, SplitWriter],
    ids: npt.NDArray[np.uint32],
    rows: npt.NDArray[Any],
    val_fraction: float,
) -> None:
    """Write each document to its split.

    Args:
        writers: the writer of each split.
        ids: ids of all documents, each with its EOS, concatenated.
        rows: `INDEX` entry of each document, with its number of tokens as `end`.
    """
    is_val = is_held_out(rows["hash"], val_fraction)
    for split, chosen in (("train", ~is_val), ("val", is_val)):
        # Without held-out documents no copy is made.
        own = ids if chosen.all() else ids[np.repeat(chosen, rows["end"].astype(np.int64))]
        writers[split].add(own, rows[chosen])
