"""What a file is, from its content: compression, format, encoding.

Its name counts only where the content has no mark of its own: what is neither JSON nor XML is plain
text in a .txt file and a table in a .csv or .tsv file. Everything that could only fail later is
refused here, before anything is built: unsupported formats and compressions, text that is not UTF-8
(never decoded with silent replacement), and records without the text key. `json_shape` explains why
JSON gives no text, `table_shape` why a table does not.
"""

from __future__ import annotations

import codecs
import re
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.sources import json_shape, parquet
from wikillm.data.sources.fixes import CR_ALONE, line_feeds, plain_format, source_filtered
from wikillm.data.sources.foreign import LONGEST_MARK, packed_parquet, refuse_binary, refuse_foreign
from wikillm.data.sources.json_value import parse_json
from wikillm.data.sources.mediawiki import read_site, refuse_dump_index
from wikillm.data.sources.read import items_of
from wikillm.data.sources.streams import BOM, TYPICAL_RATIO, head
from wikillm.data.sources.table_shape import check_header
from wikillm.data.types import SourceFile

HEAD_BYTES = 1 << 18
PROBED_RECORDS = 50

_COMPRESSION = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_SKIPPABLE = re.compile(
    rb"[\x50-\x5f]\x2a\x4d\x18"
)  # a frame of metadata, at the start of some zst
_NAMED = re.compile(r"\.(txt|csv|tsv)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
_MARKUP = re.compile(r"<(\?xml|!doctype|!--|[a-z][\w:-]*[\s>/])", re.IGNORECASE)
_DELIMITED = re.compile(r"\w+([,\t;|]\w+)+\s*")
_LINE_FORMATS = ("jsonl", "csv", "blocks", "lines")

_XML_ENCODING = re.compile(rb"<\?xml[^>]*\bencoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")
_WIDE_ENCODINGS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    **{mark + b"\x00": "utf-16-le" for mark in (b"<", b"{", b"[")},
    **{b"\x00" + mark: "utf-16-be" for mark in (b"<", b"{", b"[")},
}
_GUESSES = ("gb18030", "big5")
_LATIN = re.compile(rb"(?<=[A-Za-z])[\xc0-\xff](?=[A-Za-z ,.])|\x92(?=[a-z])")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def sniff(path: Path, wanted: str = "auto", text_key: str = "text") -> SourceFile:
    """Inspect `path`; a `wanted` format other than auto is taken as given. Raises DataError."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(LONGEST_MARK)
    refuse_foreign(path, start)
    if start.startswith(parquet.MAGIC) or wanted == "parquet":
        return _parquet(path, size, start, wanted, text_key)
    # Compression, by the first bytes.
    compression = next(
        (name for magic, name in _COMPRESSION.items() if start.startswith(magic)), ""
    )
    if not compression:
        compression = "zst" if _SKIPPABLE.match(start) else "none"
    source = SourceFile(str(path), size, "", compression, text_key=text_key)
    begin = head(source, HEAD_BYTES)
    if begin.startswith(parquet.MAGIC):
        raise packed_parquet(path, compression)
    # Encoding, by the first bytes of the text.
    encoding = _encoding(path, begin)
    if encoding == "utf-8":
        refuse_binary(path, begin)
    text = _shown(begin, encoding)
    if not text:
        what = "A file of data.path holds nothing but white space."
        raise DataError(what, got=str(path), fix="leave it out")
    # Format, by what the text looks like. Only XML may be in another encoding, which it declares.
    if wanted == "mediawiki" or (wanted == "auto" and re.search(r"<mediawiki[\s>]", text[:65536])):
        return replace(source, format="mediawiki", encoding=encoding, site=read_site(text))
    refuse_dump_index(path, text)
    _refuse_other_encodings(source, begin, encoding)
    format = _format(source, text, is_whole=len(begin) < HEAD_BYTES) if wanted == "auto" else wanted
    if format in _LINE_FORMATS:
        _refuse_line_ends(source, text, format)
    return replace(source, format=format)


def _shown(begin: bytes, encoding: str = "utf-8") -> str:
    """The beginning of a file as text, only to look at it."""
    return begin.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")


def _parquet(path: Path, size: int, start: bytes, wanted: str, text_key: str) -> SourceFile:
    is_parquet = start.startswith(parquet.MAGIC)
    if is_parquet and wanted in ("auto", "parquet"):
        return SourceFile(str(path), size, "parquet", "none", text_key=text_key)
    kind = "it is Parquet" if is_parquet else "it is no Parquet"
    raise DataError(
        f"A file is not what data.format={wanted} says.",
        got=f"{path} starts with {start[:8]!r}; {kind}",
        fix="data.format=auto looks into each file",
    )


def _encoding(path: Path, begin: bytes) -> str:
    for mark, name in _WIDE_ENCODINGS.items():
        if begin.startswith(mark):
            return name
    # Latin text in UTF-16 without a mark at its start: every other byte is 0.
    even = begin[0:4096:2].count(0)
    odd = begin[1:4096:2].count(0)
    if max(even, odd) * 5 > min(len(begin), 4096) and min(even, odd) * 20 < max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    declared = _XML_ENCODING.match(begin.removeprefix(BOM).lstrip()[:200])
    name = declared[1].decode().lower() if declared else "utf-8"
    try:
        "".encode(name)
    except LookupError:
        what = "An XML file declares an encoding that is not known."
        raise DataError(what, got=f"{path}: {name}") from None
    return "utf-8" if name in ("utf8", "ascii", "us-ascii") else name


def _format(source: SourceFile, text: str, is_whole: bool) -> str:
    """The format of a file by its beginning, and by its name where that is not decisive."""
    named = _NAMED.search(source.path)
    if named and not _looks_structured(text):
        return "text" if named[1].lower() == "txt" else "csv"
    lines = [line for line in text.split("\n") if line.strip()]
    if not is_whole and len(lines) > 1:
        lines.pop()  # it may be cut off
    kinds = [json_shape.kind_of_line(line) for line in lines[:PROBED_RECORDS]]
    if _MARKUP.match(text):
        raise _other_markup(source, text)
    if text.startswith("["):
        are_arrays = len(lines) > 1 and all(line.rstrip().endswith("]") for line in lines)
        # An array on each line is explained by the check of the records.
        return "jsonl" if are_arrays and set(kinds) == {"json"} else "json"
    if text.startswith("{"):
        _refuse_line_ends(source, text, "jsonl")
        json_shape.refuse_lines(source, kinds, lines[0])
        if "json" in kinds or (len(lines) == 1 and not is_whole):
            return "jsonl"  # a single line longer than the head counts as JSON Lines
        json_shape.refuse_object(source, text)
    are_numbers = all(re.fullmatch(r"[-+.\deE\s]+", line) for line in lines[:PROBED_RECORDS])
    if kinds.count("json") * 2 > len(kinds) and not are_numbers:
        return "jsonl"  # its first line is damaged, or each is a string
    raise _unknown(source, text, lines)


def _other_markup(source: SourceFile, text: str) -> DataError:
    got = f"{source.path} starts with {text[:60]!r}"
    if re.match(r"<(!doctype\s+html|html)\b", text, re.IGNORECASE):
        return DataError(
            "A file is a web page (HTML), not a MediaWiki export.",
            got=got,
            fix="download it again: a server that refuses often sends a page instead of the file\n"
            f"or take the page itself as the text: {plain_format(text)}",
        )
    return DataError(
        "An XML or HTML file is not a MediaWiki export.",
        got=got,
        fix=f"take the file as plain text: {plain_format(text)}\n"
        "or for a dump of a wiki: one that starts with <mediawiki ...>",
    )


def _unknown(source: SourceFile, text: str, lines: list[str]) -> DataError:
    plain = plain_format(text)
    kinds = {
        "data.format=blocks": "documents are separated by blank lines",
        "data.format=lines": "a line is a document",
    }
    other = next(name for name in kinds if name != plain)
    fix = (
        f"{plain}\n(plain text in which {kinds[plain]}; or {other}: {kinds[other]}; "
        "data.format=text: a file is one)"
    )
    first = lines[0] if lines else ""
    if _DELIMITED.fullmatch(first) and source.text_key in re.split(r"[,\t;|]", first.strip()):
        fix = "data.format=csv"
    return DataError(
        "The format of a file is not known: it is neither JSON, nor a MediaWiki export, "
        "nor named .txt, .csv or .tsv.",
        got=f"{source.path} starts with {text[:60]!r}",
        fix=fix,
    )


def _looks_structured(text: str) -> bool:
    """Whether a file that is named like text or a table holds JSON or XML all the same."""
    if text.startswith("{"):
        lines = (line for line in text.split("\n")[:PROBED_RECORDS] if line.strip())
        kinds = {json_shape.kind_of_line(line) for line in lines}
        return kinds != {"other"} or re.match(r"\{\s*[\"'][^\"']*[\"']\s*:", text) is not None
    return re.match(r"\[\s*\{|<(\?xml|!doctype|html|mediawiki)\b", text, re.IGNORECASE) is not None


def _refuse_line_ends(source: SourceFile, text: str, format: str) -> None:
    """Refuse a file whose lines end with a carriage return alone: all of it would be one line."""
    if "\n" in text or "\r" not in text.rstrip("\r"):
        return
    suffix = {"jsonl": ".jsonl", "csv": ".csv"}.get(format, ".txt")
    raise DataError(
        CR_ALONE,
        got=f"{source.path} ({format}): no line feed in its first {len(text):,} characters, "
        f"and {text.count(chr(13)):,} CR",
        fix=line_feeds(source, suffix),
    )


def _refuse_other_encodings(source: SourceFile, begin: bytes, encoding: str) -> None:
    """Refuse a file in another encoding; one with a few damaged records passes."""
    path = source.path
    guess: str | None = encoding
    got = f"{path} starts with the bytes {begin[:8].hex(' ')}"
    if encoding == "utf-8":
        text = begin.decode("utf-8", errors="replace")  # only to count
        wrong = text.count("\ufffd") - begin.count("\ufffd".encode())
        if wrong < 8 or 2 * wrong < len(_NOT_ASCII.findall(text)):
            return
        guess = next((name for name in _GUESSES if _reads_as(begin, name)), None)
        if guess is None and 2 * len(_LATIN.findall(begin)) > wrong:
            guess = "windows-1252"
        got = f"{path}: {wrong} places in its first {len(begin)} bytes do not decode as UTF-8"
    suffixes = [part for part in Path(path).suffixes if part[1:].lower() not in TYPICAL_RATIO]
    suffix = suffixes[-1] if suffixes and re.fullmatch(r"\.\w+", suffixes[-1]) else ".txt"
    name = (guess or "ENCODING").upper().replace("UTF-16-", "UTF-16")
    raise DataError(
        "A file is not UTF-8" + (f"; it looks like {guess}." if guess else "."),
        got=got,
        fix=source_filtered(source, f"iconv -f {name} -t UTF-8", suffix),
    )


def _reads_as(begin: bytes, encoding: str) -> bool:
    """Whether `begin`, up to a character cut off at its end, is text with hanzi in `encoding`."""
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(begin)
    except UnicodeDecodeError:
        return False
    return re.search("[\u4e00-\u9fff]", text) is not None


def check_text_key(source: SourceFile, max_document_bytes: int) -> None:
    """Raise DataError when the first records have no text under the text key."""
    if source.format == "parquet":
        parquet.check_column(source)
    elif source.format == "csv":
        check_header(source, max_document_bytes)
    elif source.format in ("json", "jsonl"):
        _check_json_key(source, max_document_bytes)
    elif (
        source.format == "text"
        and source.compression == "none"
        and source.size > max_document_bytes
    ):
        text = head(source, HEAD_BYTES).decode("utf-8", errors="replace")
        raise DataError(
            "A text file is longer than one document may be (data.max_document_bytes).",
            got=f"{source.path}: {format_size(source.size)}, and a text file is one document",
            fix=f"{plain_format(text)}\nor data.max_document_bytes={source.size}",
        )


def _check_json_key(source: SourceFile, max_document_bytes: int) -> None:
    values: list[Any] = []
    first = b""
    longest = 0
    for _, payload, size in islice(items_of(source, 0, max_document_bytes), PROBED_RECORDS):
        longest = max(longest, size)
        if payload is None:
            continue
        first = first or payload[:4096]
        with suppress(ValueError):  # UnicodeDecodeError is one
            values.append(parse_json(payload.removeprefix(BOM).decode()))
    objects = [value for value in values if isinstance(value, dict)]
    if any(isinstance(value.get(source.text_key), str) for value in objects):
        return
    if objects:
        raise json_shape.no_text(source, objects)
    if first or not longest:
        raise json_shape.no_objects(source, values, first, PROBED_RECORDS)
    keys = json_shape.wrapping_keys(_shown(head(source, HEAD_BYTES)))
    fix = f"data.max_document_bytes={longest}"
    raise DataError(
        "The first records are all longer than data.max_document_bytes.",
        got=f"{source.path}: {format_size(longest)}",
        fix=json_shape.unwrapped(source, keys) if keys else fix,
    )
