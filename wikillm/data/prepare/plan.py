"""The plan of a token store, complete before the build starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wikillm.core.errors import DataError
from wikillm.data.filters.documents import CleanJob
from wikillm.data.filters.drop_list import DropList
from wikillm.data.filters.settings import Filters
from wikillm.data.funnel import Funnel
from wikillm.data.prepare.shard import ShardJob
from wikillm.data.sources.read import ShardReader, estimated_bytes
from wikillm.data.store.manifest import SourceInfo, fingerprint_of
from wikillm.data.tokenizer.encoders import CHECKED_BEFORE_TRAINING, FIRST_DOCUMENTS
from wikillm.data.tokenizer.find import TokenizerChoice
from wikillm.data.types import SourceFile
from wikillm.data.workers.exclusive import beside

_TEXT_SHARE = {"mediawiki": 0.6, "json": 0.98, "jsonl": 0.98, "csv": 0.98}
"""Upper bound of clean text per decompressed byte; 1 for formats that are not listed."""
_STORE_BYTES_PER_TEXT_BYTE = 1.4
"""0.29 tokens of 4 bytes, plus an index entry of 32 bytes per document of at least 250 bytes."""
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """The settings that decide a store's content (`facts`), and the settings of its build.

    Attributes:
        is_read: whether a run trains on shards during the build, so that they must not change.
    """

    store: Path
    facts: dict[str, Any]
    sources: tuple[SourceFile, ...]
    source_infos: tuple[SourceInfo, ...]
    tokenizer: TokenizerChoice
    text_key: str
    shard_bytes: int
    val_fraction: float
    max_text_bytes: int | None
    max_document_bytes: int
    max_bad_fraction: float
    workers: int
    backend: str = "auto"
    is_read: bool = False
    filters: Filters = Filters()
    drop_list: DropList | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.facts)

    @property
    def relay(self) -> Path:
        """The file that holds the most recent progress line."""
        return beside(self.lock_base, ".progress")

    @property
    def lock_base(self) -> Path:
        """The base name of the lock for building this store; see `workers.exclusive`."""
        return self.store.with_name(f".{self.store.name}")

    @property
    def parts_lock(self) -> Path:
        """The lock that all processes share that build parts of the store; see `parts`."""
        return self.store.with_name(f".{self.store.name}.crew")

    @property
    def threads(self) -> int:
        """Number of decompressing threads: each uses one core and supplies a dozen workers."""
        return min(self.workers, _MAX_THREADS)

    @property
    def reader(self) -> ShardReader:
        return ShardReader(self.sources, self.shard_bytes, self.max_document_bytes, self.threads)

    @property
    def clean_job(self) -> CleanJob:
        formats = tuple(source.format for source in self.sources)
        sites = tuple(source.site for source in self.sources)
        return CleanJob(formats, self.text_key, self.filters, self.drop_list, sites)

    def shard_job(self, encoder: str) -> ShardJob:
        """The function that builds one shard with the named encoder, in any process."""
        check_first = CHECKED_BEFORE_TRAINING if self.is_read else FIRST_DOCUMENTS
        return ShardJob(
            self.store, self.clean_job, self.val_fraction, encoder=encoder, check_first=check_first
        )

    def nothing_left(self, funnel: Funnel) -> DataError:
        """The error of a build that kept no document; `funnel` has the reasons."""
        fix = "repair the sources" if funnel.bad_records else "name files that hold more text"
        if all(source.format == "mediawiki" for source in self.sources):
            fix = "see the reasons above; take a dump with the text of articles (pages-articles)"
        if self.max_text_bytes is not None and funnel.read_records == 0:
            limit = f"data.max_text_bytes={self.max_text_bytes}"
            fix = f"raise {limit}, which is less than the first document"
        return DataError("Nothing is left to train on after cleaning.", got=funnel.table(), fix=fix)


def predicted_store_bytes(sources: Sequence[SourceFile], max_text_bytes: int | None = None) -> int:
    """A high estimate of the size of a store of `sources`, in bytes."""
    shares = ((source, _TEXT_SHARE.get(source.format, 1.0)) for source in sources)
    text = sum(estimated_bytes([source]) * share for source, share in shares)
    if max_text_bytes is not None:
        text = min(text, max_text_bytes)
    return int(text * _STORE_BYTES_PER_TEXT_BYTE) + (16 << 20)
