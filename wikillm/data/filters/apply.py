"""Apply `Filters` to one document, in a worker process."""

from __future__ import annotations

from functools import lru_cache

from wikillm.data.filters.quality import page_fault, text_fault
from wikillm.data.filters.settings import Filters
from wikillm.data.text.clean import title_of
from wikillm.data.types import Dropped

CONTAMINATED = "holds an evaluation example"  # do not reword: stored manifests hold it


class Pipeline:
    """The filters with their dictionaries and indexes, which are loaded once per process."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._converter = None
        self._index = None
        if filters.convert != "none":
            from wikillm.data.filters.convert import Converter

            self._converter = Converter(filters.convert, filters.protected)
        if filters.evaluation:
            from wikillm.data.filters.overlap import EvaluationIndex

            self._index = EvaluationIndex(
                filters.evaluation,
                filters.overlap_units,
                filters.overlap_share,
                self._converter.convert if self._converter else str,
            )

    def __call__(self, text: str, payload: bytes, format: str) -> str | Dropped:
        """The text to keep, or why it is dropped. `payload` is the record that holds the text."""
        if self._filters.quality != "none" and format == "mediawiki":
            fault = page_fault(payload.decode("utf-8", errors="replace"), title_of(payload))
            if fault is not None:
                return Dropped(f"quality: {fault}", len(text))
        if self._converter is not None:
            text = self._converter.convert(text)
        if self._filters.quality != "none":
            fault = text_fault(text, self._filters.quality)
            if fault is not None:
                return Dropped(f"quality: {fault}", len(text))
        if self._index is not None and (name := self._index.find(text)) is not None:
            return Dropped(CONTAMINATED, len(text), detail=name)
        return text


open_pipeline = lru_cache(maxsize=2)(Pipeline)
