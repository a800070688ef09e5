"""What flows through the data rooms, one type at every border.

    SourceFile -> RecordBatch (`sources.record_batches`) -> CleanedDocuments -> shard files of the store

A record batch is what a reader cuts out of a source, before any cleaning. `CleanedDocuments` are what came of it: they are
columns, since 300 MB of source can be half a million lines. Offsets are bytes of the decompressed source. Everything
here is picklable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class WikiSite:
    """What a MediaWiki export says about its wiki before the first page; empty where it does not say it."""

    name: str = ""
    dbname: str = ""
    base: str = ""  # address of the main page
    language: str = ""  # as in xml:lang
    namespaces: tuple[
        tuple[int, str], ...
    ] = ()  # number and local name; a number may have several names


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was looked into. `format` is one of data.format, `compression` is none, gz, bz2, xz or zst."""

    path: str
    size: int  # bytes on disk
    format: str
    compression: str
    encoding: str = (
        "utf-8"  # anything else is transcoded while it is read; offsets then count UTF-8 bytes
    )
    text_key: str = "text"  # the column to read, where the format has columns
    url: str = ""  # where it was downloaded from
    version: str = ""  # of what is there: ETag of a server, revision of a hub
    max_field_lines: int = 1000  # of a table: data.max_field_lines
    site: WikiSite = WikiSite()  # of a MediaWiki export


Item = tuple[int, bytes | None, int]
"""One record of a source: where it starts, its bytes (None when they are too many to be held), and how many they are."""


class Dropped(NamedTuple):
    """Why a record gives no document: a line of the funnel."""

    reason: str
    characters: int
    is_bad: bool = False  # unreadable (counts against data.max_bad_fraction), rather than unwanted
    detail: str = ""  # what exactly was wrong, for the quarantine file


class DroppedItem(NamedTuple):
    """A record that gave no document. `payload` is empty when the record was too long to be held."""

    offset: int
    payload: bytes
    why: Dropped


@dataclass(slots=True)
class CleanedDocuments:
    """Records of one source that follow each other, cleaned. Document i has `offsets[i]`, `payloads[i]` and `texts[i]`."""

    source: int  # index into the list of source files
    source_bytes: int  # from its first record to the end of its last
    offsets: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    dropped: list[DroppedItem] = field(default_factory=list)

    def first(self, documents: int) -> CleanedDocuments:
        """All before the document of that number."""
        end = self.offsets[documents]
        dropped = [item for item in self.dropped if item.offset < end]
        columns = (self.offsets[:documents], self.payloads[:documents], self.texts[:documents])
        return CleanedDocuments(self.source, self.source_bytes, *columns, dropped)


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """Token ids of one document, its EOS included."""

    ids: npt.NDArray[np.uint32]
    content_hash: int  # 64 bit, of the NFC-normalised text
    text_bytes: int  # UTF-8 bytes of the text, EOS not counted
    source: int
    offset: int
