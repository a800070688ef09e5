"""Read documents from sources as `prepare` does, without a token store."""

from __future__ import annotations

from collections.abc import Iterator

from wikillm.config.schema_data import DataSection
from wikillm.core.log import warn
from wikillm.data.fetch.find import find_sources
from wikillm.data.filters.documents import CleanJob
from wikillm.data.filters.settings import plan_filters
from wikillm.data.prepare.prepare import inspect_source
from wikillm.data.sources.read import MIN_RANGE, ShardReader


def read_documents(cfg: DataSection, max_bytes: int | None = None) -> Iterator[tuple[str, str]]:
    """The source and the text of each document of `data.path`, cleaned and filtered.

    Args:
        cfg: sources, text key and filters, as for `prepare`. Settings of a store have no effect.
        max_bytes: number of UTF-8 bytes of text after which reading of a file stops.

    Raises DataError when a source cannot be read or gives no document.
    """
    filters = plan_filters(cfg)
    files = find_sources(cfg)
    for file in files:
        source = inspect_source(file, cfg)
        job = CleanJob((source.format,), cfg.text_key, filters, None, (source.site,))
        remaining = max_bytes
        dropped = 0
        reader = ShardReader((source,), MIN_RANGE, cfg.max_document_bytes)
        for batch in (batch for raw in reader.read() for batch in job.batches(raw)):
            dropped += sum(item.why.is_bad for item in batch.dropped)
            for text in batch.texts:
                yield source.path, text
                if remaining is not None:
                    remaining -= len(text.encode())
                    if remaining <= 0:
                        break
            if remaining is not None and remaining <= 0:
                break
        if dropped:
            warn(f"{source.path}: {dropped} records could not be read")
