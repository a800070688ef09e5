"""What a file is, from what is in it: compression, format, encoding.

Its name is asked only where the content has no mark of its own: what is no JSON and no XML is plain text in a .txt
file and a table in a .csv or .tsv file. Refuses here, before anything is built, what could only fail later: formats and compressions that are not
supported, text that is not UTF-8 (never decoded with silent replacement), and JSON whose records lack the text
key (the keys that were seen are listed).
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from wikillm.core.errors import DataError, did_you_mean
from wikillm.core.units import format_size
from wikillm.data.sources import parquet
from wikillm.data.sources.read import csv_header, items_of
from wikillm.data.sources.split import BOM
from wikillm.data.sources.split_text import columns_of
from wikillm.data.sources.streams import head
from wikillm.data.types import SourceFile

HEAD_BYTES = 1 << 18
PROBED_RECORDS = 50

_COMPRESSION = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_FOREIGN = {
    b"PK\x03\x04": ("zip", "unzip FILE"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x FILE"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d FILE"),
    b"ARROW1": ("Arrow", "write its text column as JSON Lines"),
}
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # a zst file may start with a frame of metadata
_NAMED = re.compile(r"\.(txt|csv|tsv)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
_WIDE = re.compile(r"[^\x00-\x7f]")
_XML_ENCODING = re.compile(rb"<\?xml[^>]*\bencoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")
_UTF16 = {
    b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
    b"<\x00": "utf-16-le", b"{\x00": "utf-16-le", b"[\x00": "utf-16-le",
    b"\x00<": "utf-16-be", b"\x00{": "utf-16-be", b"\x00[": "utf-16-be",
}  # fmt: skip


def sniff(path: Path, wanted: str = "auto", text_key: str = "text") -> SourceFile:
    """Look into `path`. `wanted` is data.format; anything but auto is taken at its word. Raises DataError."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(16)
    for magic, (name, command) in _FOREIGN.items():
        if start.startswith(magic):
            raise DataError(f"{name} files cannot be read.", got=str(path), fix=command.replace("FILE", str(path)))
    if start.startswith(parquet.MAGIC) or wanted == "parquet":
        return _parquet(path, size, start, wanted, text_key)
    compression = next((name for magic, name in _COMPRESSION.items() if start.startswith(magic)), "none")
    compression = "zst" if _SKIPPABLE.match(start) else compression
    begin = head(SourceFile(str(path), size, "", compression), HEAD_BYTES)
    if begin[257:262] == b"ustar":
        raise DataError("A tar archive cannot be read.", got=str(path), fix=f"tar -xf {path}")
    if begin.startswith(parquet.MAGIC):
        raise DataError(f"A Parquet file in {compression} cannot be read.", got=str(path), fix="decompress it first")
    encoding = _encoding(path, begin)
    text = begin.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")  # only to look at, never kept
    if not text:
        raise DataError("A file of data.path holds nothing but white space.", got=str(path), fix="leave it out")
    format = _format(path, text) if wanted == "auto" else wanted
    if format != "mediawiki":
        _refuse_other_encodings(path, begin, encoding, format)
        encoding = "utf-8"
    return SourceFile(str(path), size, format, compression, encoding, text_key)


def _parquet(path: Path, size: int, start: bytes, wanted: str, text_key: str) -> SourceFile:
    is_parquet = start.startswith(parquet.MAGIC)
    if is_parquet and wanted in ("auto", "parquet"):
        return SourceFile(str(path), size, "parquet", "none", text_key=text_key)
    raise DataError(
        f"A file is not what data.format={wanted} says.",
        got=f"{path} starts with {start[:8]!r}; " + ("it is" if is_parquet else "it is no") + " Parquet",
        fix="data.format=auto looks into each file",
    )


def _encoding(path: Path, begin: bytes) -> str:
    if begin[:2] in _UTF16:
        return _UTF16[begin[:2]]
    declared = _XML_ENCODING.match(begin.removeprefix(BOM).lstrip()[:200])
    name = declared[1].decode().lower() if declared else "utf-8"
    try:
        "".encode(name)
    except LookupError:
        raise DataError("An XML file declares an encoding that is not known.", got=f"{path}: {name}") from None
    return "utf-8" if name in ("utf8", "ascii", "us-ascii") else name


def _format(path: Path, text: str) -> str:
    named = _NAMED.search(path.name)
    plain = {"txt": "text", "csv": "csv", "tsv": "csv"}[named[1].lower()] if named else None
    if plain is not None and not _looks_structured(text):
        return plain
    if text.startswith("<"):
        if re.search(r"<mediawiki[\s>]", text[:65536]):
            return "mediawiki"
        raise DataError(
            "An XML or HTML file is not a MediaWiki export.",
            got=f"{path} starts with {text[:60]!r}",
            fix="a dump from https://dumps.wikimedia.org starts with <mediawiki ...>",
        )
    if text.startswith("["):
        return "json"
    if text.startswith("{"):
        lines = [line for line in text.split("\n") if line.strip()]
        if any(_is_json(line) for line in lines[:PROBED_RECORDS]) or len(lines) == 1:
            return "jsonl"  # one line longer than the head is taken for JSON Lines
        raise DataError(
            "A JSON object stretches over several lines; JSON Lines has one record per line.",
            got=f"{path} starts with {text[:60]!r}",
            fix=f"jq -c . {path} > lines.jsonl   (or put the records into one array: [ ... ])",
        )
    raise DataError(
        "The format of a file is not known: it is neither JSON, nor a MediaWiki export, nor named .txt, .csv or .tsv.",
        got=f"{path} starts with {text[:60]!r}",
        fix="plain text: data.format=text (a file is a document) or data.format=blocks (blank lines between documents)\n"
        "a table: data.format=csv; JSON Lines whose first line is damaged: data.format=jsonl",
    )


def _looks_structured(text: str) -> bool:
    """Whether a file that is named like text or a table holds JSON or XML all the same."""
    if text.startswith("{"):
        return any(_is_json(line) for line in text.split("\n")[:PROBED_RECORDS] if line.strip())
    return re.match(r"\[\s*\{|<(\?xml|!doctype|html|mediawiki)\b", text, re.IGNORECASE) is not None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_other_encodings(path: Path, begin: bytes, encoding: str, format: str) -> None:
    """Tell a file in another encoding from one with a few damaged records, which is read on, those counted."""
    if encoding == "utf-8":
        text = begin.decode("utf-8", errors="replace")  # only to count
        wrong = text.count("\ufffd") - begin.count("\ufffd".encode())
        if wrong < 8 or 2 * wrong < len(_WIDE.findall(text)):
            return
        guess = next((name for name in ("gb18030", "big5") if _reads_as(begin, name)), None)
        got = f"{path}: {wrong} places in its first {len(begin)} bytes do not decode as UTF-8"
    else:
        guess, got = encoding, f"{path} starts with the bytes {begin[:8].hex(' ')}"
    raise DataError(
        f"A file ({format}) is not UTF-8" + (f"; it looks like {guess}." if guess else "."),
        got=got,
        fix=f"iconv -f {(guess or 'ENCODING').upper()} -t UTF-8 {path} > utf8{path.suffix}",
    )


def _reads_as(begin: bytes, encoding: str) -> bool:
    """Whether `begin`, up to a character cut off at its end, is text with hanzi in `encoding`."""
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(begin)
    except UnicodeDecodeError:
        return False
    return re.search("[\u4e00-\u9fff]", text) is not None


def check_text_key(source: SourceFile, text_key: str, max_document_bytes: int) -> None:
    """Refuse a source in whose first records no text stands under `text_key`; list the keys that are there."""
    if source.format == "parquet":
        parquet.check_column(source)
    elif source.format == "csv":
        names, _ = columns_of(csv_header(source, max_document_bytes)[1])
        if text_key not in names:
            raise _no_key(source, text_key, names)
    elif source.format == "text" and source.compression == "none" and source.size > max_document_bytes:
        raise DataError(
            "A text file is longer than one document may be (data.max_document_bytes).",
            got=f"{source.path}: {format_size(source.size)}, and a text file is one document",
            fix="data.format=blocks, where blank lines stand between documents; or data.max_document_bytes=SIZE",
        )
    elif source.format in ("json", "jsonl"):
        _check_json_key(source, text_key, max_document_bytes)


def _check_json_key(source: SourceFile, text_key: str, max_document_bytes: int) -> None:
    keys: Counter[str] = Counter()
    objects = 0
    first = b""
    for _, payload, _ in islice(items_of(source, 0, max_document_bytes), PROBED_RECORDS):
        if payload is None:
            continue
        first = first or payload[:60]
        try:
            value = json.loads(payload.removeprefix(BOM))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            objects += 1
            keys.update(value)
    if objects == 0:
        raise DataError(
            f"None of the first {PROBED_RECORDS} records is a JSON object.",
            got=f"{source.path} (read as {source.format}) starts with {first!r}",
            fix='wanted: {"text": "..."}, one per line, or an array of such objects',
        )
    if text_key not in keys:
        raise _no_key(source, text_key, keys)


def _no_key(source: SourceFile, text_key: str, keys: Iterable[str]) -> DataError:
    keys = sorted(keys)
    near = did_you_mean(text_key, keys) or next((key for key in ("text", "content", "body") if key in keys), None)
    return DataError(
        f"The records have no key {text_key!r} (data.text_key).",
        got=f"{source.path} has the keys " + ", ".join(keys),
        fix=f"data.text_key={near}" if near else "data.text_key=KEY with the key that holds the text",
    )
