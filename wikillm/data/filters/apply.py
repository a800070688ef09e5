"""Do what a `Filters` says to one document. Runs in the worker processes."""

from __future__ import annotations

from functools import lru_cache

from wikillm.data.filters.quality import page_fault, text_fault
from wikillm.data.filters.settings import Filters
from wikillm.data.types import Document, Dropped, Record

CONTAMINATED = "holds an evaluation example"


class Pipeline:
    """The opened filters: dictionaries and indexes are loaded once per process."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._converter = self._index = None
        if filters.convert != "none":
            from wikillm.data.filters.convert import Converter

            self._converter = Converter(filters.convert, filters.protected)
        if filters.evaluation:
            from wikillm.data.filters.overlap import EvaluationIndex

            self._index = EvaluationIndex(filters.evaluation, filters.overlap_units, filters.overlap_share)

    def __call__(self, document: Document, record: Record, format: str) -> Document | Dropped:
        """The document as it is kept, or why it is not; its characters are then those of the clean text."""
        if self._filters.quality != "none" and format == "mediawiki":
            fault = page_fault(record.payload.decode("utf-8", errors="replace"), document.title)
            if fault is not None:
                return _dropped(document, f"quality: {fault}")
        if self._converter is not None:
            document = document._replace(text=self._converter.convert(document.text))
        if self._filters.quality != "none":
            fault = text_fault(document.text, self._filters.quality)
            if fault is not None:
                return _dropped(document, f"quality: {fault}")
        if self._index is not None and (name := self._index.find(document.text)) is not None:
            return _dropped(document, CONTAMINATED, name)
        return document


def _dropped(document: Document, reason: str, detail: str = "") -> Dropped:
    return Dropped(document.source, document.offset, reason, len(document.text), detail=detail)


open_pipeline = lru_cache(maxsize=2)(Pipeline)
