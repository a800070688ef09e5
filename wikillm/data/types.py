"""What flows through the data rooms, one frozen type at every border.

    SourceFile -> Record -> Document | Dropped -> TokenizedDocument -> shard files of the store

A `Record` is what a reader cuts out of a source, before any cleaning; a `Document` is clean text. Offsets are
bytes of the decompressed source. Everything here is picklable: records travel to worker processes.

`Record` and `Document` are made for every line of a source, half a million times in 300 MB: as named tuples they take half
the time of frozen dataclasses (0.24 and 0.49 us, by timeit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was looked into. `format` is one of data.format, `compression` is none, gz, bz2, xz or zst."""

    path: str
    size: int  # bytes on disk
    format: str
    compression: str
    encoding: str = "utf-8"  # anything else is transcoded while it is read; offsets then count UTF-8 bytes
    text_key: str = "text"  # the column to read, where the format has columns
    url: str = ""  # where it was downloaded from
    version: str = ""  # of what is there: ETag of a server, revision of a hub


class Record(NamedTuple):
    """One raw item of a source. `offset` is where it starts in the decompressed file."""

    source: int  # index into the list of source files
    offset: int
    payload: bytes


class Document(NamedTuple):
    """Clean text of one article or record."""

    source: int
    offset: int
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that gives no document, and why: a line of the funnel."""

    source: int
    offset: int
    reason: str
    characters: int
    is_bad: bool = False  # unreadable (counts against data.max_bad_fraction), rather than unwanted
    detail: str = ""  # what exactly was wrong, for the quarantine file


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """Token ids of one document, its EOS included."""

    ids: npt.NDArray[np.uint32]
    content_hash: int  # 64 bit, of the NFC-normalised text
    text_bytes: int  # UTF-8 bytes of the text, EOS not counted
    source: int
    offset: int
