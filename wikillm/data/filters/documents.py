"""Clean and filter the records of a shard: the first step of a worker in both passes.

Each record batch becomes one `CleanedDocuments`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wikillm.data.filters.apply import open_pipeline
from wikillm.data.filters.drop_list import DropList
from wikillm.data.filters.settings import Filters
from wikillm.data.funnel import Funnel, Tally
from wikillm.data.sources.read import RawShard
from wikillm.data.sources.record_batches import RecordBatch
from wikillm.data.text.clean import Clean, cleaner
from wikillm.data.types import CleanedDocuments, Dropped, DroppedItem, WikiSite
from wikillm.data.workers.progress import Report, Work

TOO_LONG = "longer than data.max_document_bytes"
_MAX_TEXT = 16 << 20
"""A record of more bytes counts as bad: it may be many records whose borders are damaged."""


@dataclass(frozen=True, slots=True)
class CleanJob:
    """Cleans and filters the records of shards."""

    formats: tuple[str, ...]  # of each source
    text_key: str
    filters: Filters = Filters()
    drop_list: DropList | None = None
    sites: tuple[WikiSite, ...] = ()  # of each source; empty if all are unknown

    def __call__(self, raw: RawShard, report: Report) -> tuple[list[str], Funnel]:
        """The texts in order, as a tokenizer is trained on them, and the funnel of all records."""
        tally = Tally()
        texts: list[str] = []
        for batch in self.batches(raw):
            tally.count(batch)
            texts += batch.texts
            report(Work(source_bytes=batch.source_bytes))
        return texts, tally.funnel()

    def batches(self, raw: RawShard) -> Iterator[CleanedDocuments]:
        """The cleaned documents of each record batch, in order."""
        duplicates = {}
        if self.drop_list is not None:
            duplicates = self.drop_list.between(_ranges(raw.batches))
        sites = self.sites or (WikiSite(),) * len(self.formats)
        kinds = tuple(zip(self.formats, sites, strict=True))
        clean = {kind: self._cleaner(*kind) for kind in set(kinds)}
        for records in raw.batches:
            yield _cleaned(records, clean[kinds[records.source]], duplicates)

    def _cleaner(self, format: str, site: WikiSite) -> Clean:
        """The function that cleans and filters records of one format, from one wiki."""
        clean = cleaner(format, self.text_key, site)
        if self.filters.is_idle:
            return clean
        pipeline = open_pipeline(self.filters)

        def clean_and_filter(payload: bytes, offset: int) -> str | Dropped:
            found = clean(payload, offset)
            return pipeline(found, payload, format) if isinstance(found, str) else found

        return clean_and_filter


def _cleaned(
    records: RecordBatch, clean: Clean, duplicates: Mapping[tuple[int, int], Dropped]
) -> CleanedDocuments:
    batch = CleanedDocuments(records.source, records.end - records.start)
    for offset, payload, size in records.items():
        if payload is None:
            too_long = Dropped(TOO_LONG, size, is_bad=size > _MAX_TEXT)
            batch.dropped.append(DroppedItem(offset, b"", too_long))
            continue
        duplicate = duplicates.get((records.source, offset)) if duplicates else None
        found = clean(payload, offset) if duplicate is None else duplicate
        if isinstance(found, str):
            batch.offsets.append(offset)
            batch.payloads.append(payload)
            batch.texts.append(found)
        else:
            batch.dropped.append(DroppedItem(offset, payload, found))
    return batch


def _ranges(batches: list[RecordBatch]) -> dict[int, tuple[int, int]]:
    """The offsets of the start of the first and the end of the last record, by source."""
    found: dict[int, tuple[int, int]] = {}
    for batch in batches:
        found[batch.source] = found.get(batch.source, (batch.start, 0))[0], batch.end
    return found


def content_hash(text: str) -> int:
    """64 bits of blake2b over the UTF-8 bytes of NFC text."""
    return int(content_hashes([text])[0][0])


def content_hashes(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint64], list[int]]:
    """The content hash of each text, and its length in UTF-8 bytes."""
    digests: list[bytes] = []
    lengths: list[int] = []
    for text in texts:
        content = text.encode()
        digests.append(hashlib.blake2b(content, digest_size=8).digest())
        lengths.append(len(content))
    return np.frombuffer(b"".join(digests), dtype="<u8"), lengths
