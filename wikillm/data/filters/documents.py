"""Clean and filter the records of a shard: the first half of what a worker does to it, whatever comes after.

Record batches come in; each leaves as one `CleanedDocuments`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
_LONGEST_TEXT = 16 << 20
"""Above it a record that is not held may as well be many, whose borders are damaged: it counts as bad."""


@dataclass(frozen=True, slots=True)
class CleanJob:
    """Called, it gives the texts that a tokenizer is trained on."""

    formats: tuple[str, ...]  # of the sources
    text_key: str
    filters: Filters = Filters()
    drop_list: DropList | None = None
    sites: tuple[WikiSite, ...] = ()  # of the sources; empty: nothing is known of any

    def __call__(self, raw: RawShard, report: Report) -> tuple[list[str], Funnel]:
        """The texts in order, and what became of all records."""
        tally, texts = Tally(), list[str]()
        for batch in self.batches(raw):
            tally.count(batch)
            texts += batch.texts
            report(Work(source_bytes=batch.source_bytes))
        return texts, tally.funnel()

    def batches(self, raw: RawShard) -> Iterator[CleanedDocuments]:
        """The cleaned documents of each record batch, in order."""
        copies = {} if self.drop_list is None else self.drop_list.between(_ranges(raw.batches))
        kinds = tuple(
            zip(self.formats, self.sites or (WikiSite(),) * len(self.formats), strict=True)
        )
        clean = {kind: self._cleaner(*kind) for kind in set(kinds)}
        for records in raw.batches:
            yield _cleaned(records, clean[kinds[records.source]], copies)

    def _cleaner(self, format: str, site: WikiSite) -> Clean:
        """Cleaning and filters for the records of one format, from one wiki."""
        clean = cleaner(format, self.text_key, site)
        if self.filters.is_idle:
            return clean
        pipeline = open_pipeline(self.filters)

        def clean_and_filter(payload: bytes, offset: int) -> str | Dropped:
            found = clean(payload, offset)
            return pipeline(found, payload, format) if isinstance(found, str) else found

        return clean_and_filter


def _cleaned(
    records: RecordBatch, clean: Clean, copies: Mapping[tuple[int, int], Dropped]
) -> CleanedDocuments:
    batch = CleanedDocuments(records.source, records.end - records.start)
    for offset, payload, size in records.items():
        if payload is None:
            batch.dropped.append(
                DroppedItem(offset, b"", Dropped(TOO_LONG, size, is_bad=size > _LONGEST_TEXT))
            )
            continue
        copy = copies.get((records.source, offset)) if copies else None
        found = clean(payload, offset) if copy is None else copy
        if isinstance(found, str):
            batch.offsets.append(offset)
            batch.payloads.append(payload)
            batch.texts.append(found)
        else:
            batch.dropped.append(DroppedItem(offset, payload, found))
    return batch


def _ranges(batches: list[RecordBatch]) -> dict[int, tuple[int, int]]:
    """From where to where they go in each source."""
    found: dict[int, tuple[int, int]] = {}
    for batch in batches:
        found[batch.source] = found.get(batch.source, (batch.start, 0))[0], batch.end
    return found
