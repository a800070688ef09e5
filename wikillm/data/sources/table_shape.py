"""Why the header of a table lacks the column of the text, and the line to paste that fixes it."""

from __future__ import annotations

import re
import shlex

from wikillm.core.errors import DataError, did_you_mean
from wikillm.core.log import say
from wikillm.data.sources.fixes import CR_ALONE, line_feeds, setting, source_filtered
from wikillm.data.sources.read import csv_header
from wikillm.data.sources.tables import DELIMITERS, Columns, columns_of
from wikillm.data.types import SourceFile

_NAMES = {"\t": "tabs", ";": "semicolons", "|": "|", "\x01": "the character 0x01", ",": "commas"}
_OTHER = re.compile(r"[^\w\s\"'.()/-]")
_LONGEST_NAME = 60


def check_header(source: SourceFile, max_document_bytes: int) -> None:
    """Raise DataError when no column has the text key; log an unexpected delimiter."""
    text_key = source.text_key
    header = csv_header(source, max_document_bytes)[1]
    text = header.decode("utf-8", errors="replace").lstrip("\ufeff").rstrip("\r\n")
    if "\r" in text:
        got = f"{source.path}: the first line holds {text.count(chr(13)):,} CR: {text[:40]!r}"
        raise DataError(CR_ALONE, got=got, fix=line_feeds(source, ".csv"))
    columns = columns_of(header)
    names = columns.names
    usual = "\t" if re.search(r"\.tsv\b", source.path, re.IGNORECASE) else ","
    if text_key in names:
        if columns.delimiter != usual and len(names) > 1:
            kind = _NAMES[columns.delimiter]
            say(f"data: {source.path} is separated by {kind}: {len(names)} columns")
        return
    got = f"{source.path} has the columns " + ", ".join(_short(name) for name in names[:30])
    other = next((mark for mark in _OTHER.findall(text) if text_key in text.split(mark)), None)
    if len(names) == 1 and other is not None and other not in DELIMITERS:
        raise DataError(
            f"The fields of a table are separated by {other!r}, which is not read.",
            got=f"{got}\nread are comma, tab, semicolon and |",
            fix=source_filtered(source, f"tr {shlex.quote(other)} '\\t'", ".tsv"),
        )
    near = _near(text_key, names)
    if near is None and any(len(name) > _LONGEST_NAME for name in names):
        raise DataError(
            "A table seems to have no header: its first row is text.",
            got=got,
            fix=_with_header(source, columns),
        )
    fix = "data.text_key=COLUMN with the column that holds the text"
    raise DataError(
        f"The records have no key {text_key!r} (data.text_key).",
        got=got,
        fix=setting("data.text_key", near) if near else fix,
    )


def _near(text_key: str, columns: tuple[str, ...]) -> str | None:
    names = [name for name in columns if name and len(name) <= _LONGEST_NAME]
    same = next((name for name in names if name.strip().lower() == text_key.lower()), None)
    known = next((key for key in ("text", "content", "body", "article") if key in names), None)
    near = same or known or did_you_mean(text_key, names)
    return near or (names[0] if len(columns) == 1 and names else None)


def _with_header(source: SourceFile, columns: Columns) -> str:
    """A line that adds a header; the longest field of the first row counts as the text."""
    longest = max(range(len(columns.names)), key=lambda i: len(columns.names[i]))
    names = [f"column{i + 1}" for i in range(len(columns.names))]
    names[longest] = source.text_key
    header = shlex.quote(columns.delimiter.join(names))
    suffix = ".tsv" if columns.delimiter == "\t" else ".csv"
    return source_filtered(source, f"(printf '%s\\n' {header}; cat)", suffix)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
