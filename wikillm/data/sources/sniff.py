"""Detect the compression, format and encoding of a file from its content.

The name of the file counts only if the content does not decide: if it is neither JSON nor XML, a
.txt file is plain text and a .csv or .tsv file is a table. Files that would fail later are refused
here, before anything is built: unsupported formats and compressions, and text that is not UTF-8
(never decoded with silent replacement). Records without the text key are refused in `check_source`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from wikillm.core.errors import DataError
from wikillm.data.sources import parquet
from wikillm.data.sources.decompress import BOM, head
from wikillm.data.sources.fixes import converted, plain_format
from wikillm.data.sources.foreign import MAX_MARK, cannot_be_read, refuse_binary, refuse_foreign
from wikillm.data.sources.json_fixes import HOW_TO_WRITE_JSON, mistake_in
from wikillm.data.sources.json_value import parse_json
from wikillm.data.sources.mediawiki import read_site, refuse_dump_index
from wikillm.data.types import SourceFile

HEAD_BYTES = 1 << 18
_PROBED_LINES = 50

_COMPRESSION = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # metadata at the start of some zst
_NAMED = re.compile(r"\.(txt|csv|tsv)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
_MARKUP = re.compile(r"<(\?xml|!doctype|!--|[a-z][\w:-]*[\s>/])", re.IGNORECASE)
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
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def sniff(path: Path, wanted: str = "auto", text_key: str = "text") -> SourceFile:
    """Inspect the file at `path`. Raises DataError for a file that cannot be read.

    A `wanted` format other than auto is not detected; only Parquet and MediaWiki are checked.
    """
    status = path.stat()
    with open(path, "rb") as file:
        start = file.read(MAX_MARK)
    refuse_foreign(path, start)
    # Compression, by the first bytes.
    matching = (name for magic, name in _COMPRESSION.items() if start.startswith(magic))
    compression = next(matching, "zst" if _SKIPPABLE.match(start) else "none")
    source = SourceFile(
        str(path),
        status.st_size,
        "",  # the format, which is not known yet
        compression,
        text_key=text_key,
        modified=status.st_mtime_ns,
    )
    if start.startswith(parquet.MAGIC):
        if wanted not in ("auto", "parquet"):
            raise _other_format(path, start, wanted, "Parquet")
        return replace(source, format="parquet")
    if wanted == "parquet":
        raise _other_format(path, start, wanted, "not Parquet")
    begin = head(source, HEAD_BYTES)
    if begin.startswith(parquet.MAGIC):
        raise cannot_be_read(f"Parquet in {compression}", path)
    # Encoding, by the first bytes of the text.
    encoding = _encoding(path, begin)
    if encoding == "utf-8":
        refuse_binary(path, begin)
    text = _as_text(begin, encoding)
    if not text:
        what = "A file of data.path holds nothing but white space."
        raise DataError(what, got=str(path), fix="leave it out")
    # Format, by the look of the text. Only XML may have an encoding other than UTF-8.
    if wanted == "mediawiki" and not re.search(r"<(mediawiki|page)[\s>]", text):
        raise _other_format(path, start, wanted, "not a MediaWiki export")
    if wanted == "mediawiki" or (wanted == "auto" and re.search(r"<mediawiki[\s>]", text[:65536])):
        return replace(source, format="mediawiki", encoding=encoding, site=read_site(text))
    refuse_dump_index(path, text)
    _refuse_other_encodings(source, begin, encoding)
    format = _format(source, text, is_whole=len(begin) < HEAD_BYTES) if wanted == "auto" else wanted
    if format in _LINE_FORMATS:
        _refuse_line_ends(source, text, format)
    return replace(source, format=format)


def _as_text(begin: bytes, encoding: str = "utf-8") -> str:
    """The beginning of a file as text, for inspection only."""
    return begin.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")


def _other_format(path: Path, start: bytes, wanted: str, found: str) -> DataError:
    return DataError(
        f"A file is not what data.format={wanted} says.",
        got=f"{path} starts with {start[:8]!r}; it is {found}",
        fix="data.format=auto looks into each file",
    )


def _encoding(path: Path, begin: bytes) -> str:
    """The encoding by the byte order mark, the zero bytes, or the XML declaration; else UTF-8."""
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
    """The format of a file by its beginning, or by its name if the beginning does not decide."""
    named = _NAMED.search(source.path)
    if named and not _looks_structured(text):
        return "text" if named[1].lower() == "txt" else "csv"
    if _MARKUP.match(text):
        raise DataError(
            "An XML or HTML file is not a MediaWiki export.",
            got=f"{source.path} starts with {text[:60]!r}",
            fix=f"take the file as plain text: {plain_format(text)}\n"
            "or download it again: a server that refuses often sends a page instead of the file",
        )
    lines = [line for line in text.split("\n") if line.strip()]
    if not is_whole and len(lines) > 1:
        lines.pop()  # the last line may be cut off
    lines = lines[:_PROBED_LINES]
    is_json = [_is_json(line) for line in lines]
    if text.startswith("["):
        # If each line is an array, `check_source` explains what is wrong.
        return "jsonl" if len(lines) > 1 and all(is_json) else "json"
    if text.lstrip("\ufeff\x1e").startswith("{"):
        # A single line longer than the head counts as JSON Lines.
        if 2 * sum(is_json) >= len(lines) or (len(lines) == 1 and not is_whole):
            return "jsonl"
        _refuse_line_ends(source, text, "jsonl")
        what, command = mistake_in(text)
        raise DataError(
            f"{what}.",
            got=f"{source.path} starts with {text[:60]!r}",
            fix=converted(source, command, ".jsonl") if command else HOW_TO_WRITE_JSON,
        )
    # Most lines are JSON: the first line is damaged, or every line is a string. Lines of numbers
    # are JSON too, but such a file is a table.
    are_numbers = all(re.fullmatch(r"[-+.\deE\s]+", line) for line in lines)
    if sum(is_json) * 2 > len(lines) and not are_numbers:
        return "jsonl"
    raise DataError(
        "The format of a file is not known: it is neither JSON, nor a MediaWiki export, "
        "nor named .txt, .csv or .tsv.",
        got=f"{source.path} starts with {text[:60]!r}",
        fix=f"{plain_format(text, source.text_key)}\nblocks: blank lines separate the documents; "
        "lines: each line is a document; text: the whole file is one document; csv: a table",
    )


def _is_json(line: str) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _looks_structured(text: str) -> bool:
    """Whether a text is JSON or XML although its file is named .txt, .csv or .tsv."""
    if text.startswith("{"):
        lines = (line for line in text.split("\n")[:_PROBED_LINES] if line.strip())
        has_key = re.match(r"\{\s*[\"'][^\"']*[\"']\s*:", text) is not None
        return has_key or any(map(_is_json, lines))
    return re.match(r"\[\s*\{|<(\?xml|!doctype|html|mediawiki)\b", text, re.IGNORECASE) is not None


def _refuse_line_ends(source: SourceFile, text: str, format: str) -> None:
    """Refuse a file whose lines end with a carriage return alone: the file would be one line."""
    first, feed, _ = text.partition("\n")
    if "\r" not in first.rstrip("\r") or (feed and format != "csv"):
        return
    raise DataError(
        "The lines of a file end with CR alone, as on old Macintoshes.",
        got=f"{source.path} ({format}): {first.count(chr(13)):,} CR before the first line feed",
        fix=converted(source, "tr '\\r' '\\n'"),
    )


def _refuse_other_encodings(source: SourceFile, begin: bytes, encoding: str) -> None:
    """Refuse a file that is not UTF-8. A UTF-8 file with a few damaged records is accepted."""
    got = f"{source.path} starts with the bytes {begin[:8].hex(' ')}"
    name = encoding.upper().replace("UTF-16-", "UTF-16")
    likely = f"; it looks like {encoding}"
    if encoding == "utf-8":
        text = begin.decode("utf-8", errors="replace")  # only to count
        wrong = text.count("\ufffd") - begin.count("\ufffd".encode())
        if wrong < 8 or 2 * wrong < len(_NOT_ASCII.findall(text)):
            return
        got = f"{source.path}: {wrong} places in its first {len(begin)} bytes are not UTF-8"
        name = "GB18030" if _is_chinese(begin) else "ENCODING"
        likely = "; Chinese text is often GB18030 or BIG5, other text WINDOWS-1252"
    command = f"iconv -f {name} -t UTF-8"
    raise DataError(f"A file is not UTF-8{likely}.", got=got, fix=converted(source, command))


def _is_chinese(begin: bytes) -> bool:
    """Whether the bytes are GB 18030: decoded, nearly all letters beyond ASCII are in GB 2312."""
    letters = "".join(_NOT_ASCII.findall(begin.decode("gb18030", errors="replace")))
    return 10 * len(letters.encode("gb2312", errors="ignore")) > 19 * len(letters)
