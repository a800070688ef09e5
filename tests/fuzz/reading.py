"""Read and clean one file, and check that every byte of it is accounted for."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st

from wikillm.core.errors import WikiLLMError
from wikillm.data.filters.documents import CleanJob
from wikillm.data.prepare.quarantine import HEAD_BYTES, quarantined
from wikillm.data.sources import decompress
from wikillm.data.sources.check_source import check_source
from wikillm.data.sources.read import ShardReader, csv_header, items_of
from wikillm.data.sources.sniff import sniff
from wikillm.data.types import CleanedDocuments, DroppedItem, SourceFile

LIMIT = 1 << 20
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress}
PACKED |= {".bz2": bz2.compress, ".xz": lzma.compress}
_BETWEEN = {
    **dict.fromkeys(("jsonl", "lines", "blocks", "csv"), re.compile(rb"\s*")),
    "text": re.compile(rb""),
    "json": re.compile(rb"(\xef\xbb\xbf)?[\s,\[\]]*"),
}
"""What may stand between two records without being in one: nothing that is text."""


@dataclass(frozen=True)
class Read:
    """The texts in order, the dropped records, and the source."""

    texts: list[str]
    dropped: list[DroppedItem]
    source: SourceFile


def read(
    path: Path,
    content: bytes,
    wanted: str = "auto",
    range_bytes: int = LIMIT,
) -> Read:
    """Read and clean a file with `content` (decompressed). Raises WikiLLMError as the readers do.

    The file is read in pieces of `range_bytes` too. Fails when a byte is neither in a record nor a
    separator, a record is neither kept nor dropped with a reason, or a text is not its record's.
    """
    with mock.patch.object(decompress, "PIECE_BYTES", range_bytes):
        return _read(path, content, wanted, range_bytes)


def _read(path: Path, content: bytes, wanted: str, range_bytes: int) -> Read:
    source = sniff(path, wanted)
    check_source(source, LIMIT)
    items = list(items_of(source, 0, LIMIT))
    if source.format not in ("parquet", "mediawiki") and source.encoding == "utf-8":
        found = [(offset, size) for offset, _, size in items]
        if source.format == "csv":
            header = csv_header(source, LIMIT)
            found.insert(0, (header[0], len(header[1])))
        check_gaps(content, found, source.format)
    texts: list[str] = []
    dropped: list[DroppedItem] = []
    offsets: list[int] = []
    for shard in ShardReader([source], range_bytes, LIMIT).read():
        for batch in CleanJob((source.format,), "text").batches(shard):
            texts += batch.texts
            dropped += batch.dropped
            if source.format in ("json", "jsonl"):
                check_texts(batch)
            offsets += [*batch.offsets, *(item.offset for item in batch.dropped)]
    # Each record is either kept or dropped, exactly once.
    assert sorted(offsets) == [offset for offset, _, _ in items]
    assert all(item.why.reason and item.why.characters >= 0 for item in dropped)
    # What cannot be read is quarantined with its beginning.
    for item in dropped:
        if item.why.is_bad:
            line = json.loads(json.dumps(quarantined(0, item, source.format == "csv")))
            head = item.payload[:HEAD_BYTES].decode(errors="backslashreplace")
            assert line["reason"] and line["offset"] == item.offset
            assert head.startswith(line["head"]) and (line["head"] or not item.payload)
    for text in texts:
        assert text and text == text.strip() and "\x00" not in text
        text.encode()
    return Read(texts, dropped, source)


def refused_or_read(path: Path, content: bytes) -> None:
    """Check that a file is refused with an error of our own, or every byte is accounted for."""
    try:
        read(path, content)
    except WikiLLMError as error:
        assert error.what and str(error)


def check_gaps(content: bytes, found: list[tuple[int, int]], format: str) -> None:
    """Check that every byte is in one record, in the header of a table, or in a separator."""
    at = 0
    for offset, size in found:
        assert offset >= at, (offset, at)
        assert _BETWEEN[format].fullmatch(content[at:offset]), content[at:offset]
        at = max(at, offset + size)
    assert at <= len(content) + 1
    assert _BETWEEN[format].fullmatch(content[at:]), content[at:]


def check_texts(batch: CleanedDocuments) -> None:
    """Check that each text is the whole text of its record, as Python reads it."""
    for offset, payload, text in zip(batch.offsets, batch.payloads, batch.texts, strict=True):
        record = payload.removeprefix(decompress.BOM) if offset == 0 else payload
        with contextlib.suppress(RecursionError):
            assert text == clean(json.loads(record, parse_int=float)["text"])


def clean(text: str) -> str:
    """Return what the cleaner keeps of a text without markup."""
    return unicodedata.normalize("NFC", text.strip())


def written(folder: Path, name: str, content: bytes) -> Path:
    """Write `content` to a file, compressed as two streams according to its suffix."""
    path = folder / name
    pack = PACKED.get(path.suffix, bytes)
    half = len(content) // 2
    path.write_bytes(pack(content[:half]) + pack(content[half:]))
    return path


@st.composite
def damaged(draw: st.DrawFn, content: bytes, most: int = 4) -> bytes:
    """`content` with a few faults: bytes removed, changed, repeated, moved, inserted or cut off."""
    for _ in range(draw(st.integers(1, most))):
        if not content:
            break
        at = draw(st.integers(0, len(content) - 1))
        end = min(len(content), at + draw(st.sampled_from([1, 1, 2, 7, 64, 4096])))
        kind = draw(st.integers(0, 5))
        piece = draw(st.one_of(st.sampled_from(ODD), st.binary(min_size=1, max_size=6)))
        content = [
            content[:at] + content[end:],
            content[:at] + piece + content[end:],
            content[:at] + piece + content[at:],
            content[:end] + content[at:],
            content[:at],
            content[end:] + content[at:end] + content[:at],
        ][kind]
    return content


ODD = [
    *(bytes([byte]) for byte in b"\"'\\{}[],:;|<>&\n\r\t\x00\x1a\xc3\xff"),
    *(b"\r\n", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xff\xfe", b"text\n"),
    *(b'"text":', b"null", b"NaN", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 2000),
    *(b"\\ud800", b'""', b"&amp;", b"&#0;", b"&x;", b"</page>", b"<page>", b"<text>", b"]]>"),
    *(b"<![CDATA[", b"<!--", b"<!DOCTYPE a>", b'","', b"PAR1", b"BZh9", b"\x1f\x8b"),
]
