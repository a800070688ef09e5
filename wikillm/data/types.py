"""The types that the packages of `wikillm.data` exchange.

    SourceFile -> RecordBatch (`sources.record_batches`) -> CleanedDocuments -> files of a shard

Offsets are bytes of the decompressed source. All types are picklable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class WikiSite:
    """What the head of a MediaWiki export states about its wiki; empty where it states nothing."""

    name: str = ""
    dbname: str = ""
    base: str = ""  # address of the main page
    language: str = ""  # as in xml:lang
    namespaces: tuple[tuple[int, str], ...] = ()  # number and local name, several per number


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file after `sniff`. `format` is a value of data.format other than auto."""

    path: str
    size: int  # bytes on disk
    format: str
    compression: str  # none, gz, bz2, xz or zst
    encoding: str = "utf-8"  # else transcoded while reading; offsets then count UTF-8 bytes
    text_key: str = "text"  # the column to read, in formats with columns
    url: str = ""  # where it was downloaded from
    version: str = ""  # of a download: ETag, or revision of a data set
    max_field_lines: int = 1000  # of a table: data.max_field_lines
    site: WikiSite = WikiSite()  # of a MediaWiki export
    modified: int = 0  # mtime in ns when it was inspected; 0: changes are not noticed


Item = tuple[int, bytes | None, int]
"""A record of a source: its offset, its bytes (None when longer than the limit), and its size."""


class Dropped(NamedTuple):
    """Why a record gives no document; the funnel counts drops by reason."""

    reason: str
    characters: int
    is_bad: bool = False  # unreadable: counts against data.max_bad_fraction
    detail: str = ""  # what exactly was wrong, for the quarantine file


class DroppedItem(NamedTuple):
    """A record that gave no document. `payload` is empty when the record exceeded the limit."""

    offset: int
    payload: bytes
    why: Dropped


@dataclass(slots=True)
class CleanedDocuments:
    """The documents and dropped records of one record batch, as columns.

    Document i is `offsets[i]`, `payloads[i]`, `texts[i]`. Columns are used since 300 MB can be half
    a million records.
    """

    source: int  # index into the list of source files
    source_bytes: int  # from its first record to the end of its last
    offsets: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    dropped: list[DroppedItem] = field(default_factory=list)

    def first(self, documents: int) -> CleanedDocuments:
        """The part before document number `documents`."""
        return CleanedDocuments(
            self.source,
            self.source_bytes,
            self.offsets[:documents],
            self.payloads[:documents],
            self.texts[:documents],
            [item for item in self.dropped if item.offset < self.offsets[documents]],
        )
