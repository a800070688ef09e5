"""Refuse a source whose header, schema or first records hold no text under `data.text_key`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from wikillm.core.errors import DataError, did_you_mean
from wikillm.core.log import say
from wikillm.core.units import format_size
from wikillm.data.sources import parquet
from wikillm.data.sources.decompress import BOM, file_and_line, head
from wikillm.data.sources.fixes import converted, plain_format, setting
from wikillm.data.sources.json_fixes import HOW_TO_WRITE_JSON, command_for_text, mistake_in
from wikillm.data.sources.json_value import KINDS, parse_json
from wikillm.data.sources.read import csv_header, items_of
from wikillm.data.sources.tables import DELIMITERS, Columns, columns_of, parse_row
from wikillm.data.types import SourceFile

PROBED_RECORDS = 50
_LOOK_BYTES = 1 << 18
_USUAL_KEYS = ("text", "content", "body", "article", "document", "正文", "内容", "文本")
_MAX_SHOWN = 30  # number of keys that an error lists
_MAX_SHOWN = 60
_MAX_RECORD = 1 << 16  # bytes of a record in which mistakes are looked for


def check_source(source: SourceFile, max_document_bytes: int) -> None:
    """Raise DataError for a header that cannot be used, for first records without text under the
    text key, and for a text file above `max_document_bytes`."""
    if source.format == "parquet":
        columns = parquet.columns_of(source)
        _refuse_namesakes(source, [name for name, _, _ in columns])
        texts = [name for name, _, is_text in columns if is_text]
        _check_names(source, texts, [f"{name} ({kind})" for name, kind, _ in columns])
    elif source.format == "csv":
        _check_header(source, max_document_bytes)
    elif source.format in ("json", "jsonl"):
        _check_json(source, max_document_bytes)
    elif (
        source.format == "text"
        and source.compression == "none"
        and source.size > max_document_bytes
    ):
        text = head(source, _LOOK_BYTES).decode("utf-8", errors="replace")
        raise DataError(
            "A text file is longer than one document may be (data.max_document_bytes).",
            got=f"{source.path}: {format_size(source.size)}, and a text file is one document",
            fix=f"{plain_format(text)}\nor data.max_document_bytes={source.size}",
        )


def _check_names(
    source: SourceFile, texts: Sequence[str], shown: Sequence[str], command: str = ""
) -> None:
    """Raise DataError when the text key is not in `texts`, the keys that hold strings.

    Args:
        shown: all keys with their types, for the error.
        command: a command that writes records with the text key; empty if none is known.
    """
    key = source.text_key
    if key in texts:
        return
    # Suggest the same key in another case, a usual name, a similar spelling, or the only key.
    suggestion = next((name for name in texts if name.strip().lower() == key.lower()), None)
    suggestion = suggestion or next((name for name in _USUAL_KEYS if name in texts), None)
    if suggestion is None and not command:
        suggestion = did_you_mean(key, [name for name in texts if name.isidentifier()])
        is_only = len(texts) == 1 and texts[0].isprintable() and source.format != "csv"
        if not suggestion and is_only:
            suggestion = texts[0]
    if suggestion:
        fix = setting("data.text_key", suggestion)
    elif command:
        fix = converted(source, command, ".jsonl")
    elif source.format == "csv":
        fix = "set data.text_key to the column that holds the text\n"
        fix += "the first row must name the columns, separated by comma, tab, semicolon or |"
    else:
        fix = "set data.text_key to the key that holds the text\n"
        fix += f"or convert the file: {HOW_TO_WRITE_JSON}"
    listed = ", ".join(_shortened(name) for name in shown[:_MAX_SHOWN]) or "none"
    more = f", and {len(shown) - _MAX_SHOWN} more" if len(shown) > _MAX_SHOWN else ""
    raise DataError(
        f"The records have no text under {key!r} (data.text_key).",
        got=f"{source.path} has the keys {listed}{more}",
        fix=fix,
    )


def _refuse_namesakes(source: SourceFile, names: Sequence[str]) -> None:
    """Raise DataError when several columns have the name of the text key."""
    if names.count(source.text_key) > 1:
        raise DataError(
            f"Several columns are named {source.text_key!r} (data.text_key).",
            got=f"{source.path} has the columns {', '.join(map(_shortened, names))}",
            fix="rename all but one of them",
        )


def _check_header(source: SourceFile, max_document_bytes: int) -> None:
    """Raise DataError for a header that cannot be used, and for rows that do not fit it."""
    header = csv_header(source, max_document_bytes)[1]
    columns = columns_of(header)
    first = header.decode("utf-8", errors="replace")
    if header.count(b'"') % 2:
        raise DataError(
            "The first row of a table, its header, has a quote that is not closed on its line.",
            got=f"{source.path} starts with {first[:60]!r}",
            fix="write the names of all columns on the first line",
        )
    # A separator that is not read leaves one column, whose name holds the text key.
    marks = sorted(set(re.findall(r"[^\w\s\"'.()/-]|\x1f", first)).difference(DELIMITERS))
    other = next((mark for mark in marks if source.text_key in first.split(mark)), None)
    if len(columns.names) == 1 and other is not None:
        mark = shlex.quote(other) if other.isprintable() else f"'\\{ord(other):03o}'"
        command = f"tr {mark} '\\t'" if other.isascii() else f"sed 's/{other}/\\t/g'"
        raise DataError(
            f"The fields of a table are separated by {other!r}, which is not read.",
            got=f"{source.path} starts with {first[:60]!r}",
            fix=converted(source, command, ".tsv"),
        )
    _refuse_namesakes(source, columns.names)
    _check_names(source, columns.names, columns.names)
    _check_rows(source, columns, max_document_bytes)
    usual = "\t" if re.search(r"\.tsv\b", source.path, re.IGNORECASE) else ","
    if columns.delimiter != usual and len(columns.names) > 1:
        number = len(columns.names)
        say(f"data: {source.path} is separated by {columns.delimiter!r}: {number} columns")


def _check_rows(source: SourceFile, columns: Columns, max_document_bytes: int) -> None:
    """Raise DataError when none of the first rows fits the header."""
    found: list[tuple[int, str, bytes]] = []  # offset, reason and bytes of each bad row
    for offset, payload, _ in islice(items_of(source, 0, max_document_bytes), PROBED_RECORDS):
        if payload is None:
            return
        try:
            parse_row(payload)
            return
        except ValueError as error:
            found.append((offset, str(error), payload.rpartition(b"\n")[0]))
    if not found:
        what = "A table has a header and no rows."
        raise DataError(what, got=source.path, fix="leave it out")
    offset, reason, row = found[0]
    fix = "name every column in the first row, "
    fix += f'and put each field that holds {columns.delimiter!r} between double quotes: "..."'
    if any(b'\\"' in row for _, _, row in found):
        fix = converted(source, 'sed \'s/\\\\"/""/g\'')
    elif len(columns.names) == 1:
        fix = "data.format=lines"
    raise DataError(
        f"None of the first {len(found)} rows of a table fits its header.",
        got=f"{file_and_line(source, offset)}: {reason}: {row[:60].decode(errors='replace')!r}",
        fix=fix,
    )


def _check_json(source: SourceFile, max_document_bytes: int) -> None:
    """Raise DataError when none of the first records is an object with a string under the key."""
    values: list[Any] = []  # the records that are JSON
    first = b""  # the start of the first record that is not too long
    longest = 0
    for _, payload, size in islice(items_of(source, 0, max_document_bytes), PROBED_RECORDS):
        longest = max(longest, size)
        if payload is None:
            continue
        first = first or payload[:_MAX_RECORD]
        with suppress(ValueError):  # includes UnicodeDecodeError
            values.append(parse_json(payload.removeprefix(BOM).decode()))
    objects = [value for value in values if isinstance(value, dict)]
    kinds: dict[str, type] = {}  # by key: str if any record has a string there, else the last type
    for value in objects:
        kinds |= {name: type(v) for name, v in value.items() if kinds.get(name) is not str}
    is_array = source.format == "json"
    if objects:
        texts = [name for name, kind in kinds.items() if kind is str]
        shown = [f"{name} ({KINDS.get(kind, 'a string')})" for name, kind in kinds.items()]
        command = command_for_text(values, source.text_key, is_array)
        _check_names(source, texts, shown, command)
    elif not first and not longest:
        raise DataError("A file holds no records.", got=source.path, fix="leave it out")
    elif first:
        text = first.decode("utf-8", errors="replace")
        what, command = mistake_in(text, is_array)
        if values:
            what = f"None of the first {PROBED_RECORDS} records is a JSON object"
            command = command_for_text(values, source.text_key, is_array)
        raise DataError(
            f"{what}.",
            got=f"{source.path} (read as {source.format}) starts with {text[:60]!r}",
            fix=converted(source, command, ".jsonl") if command else HOW_TO_WRITE_JSON,
        )
    else:
        raise DataError(
            "The first records are all longer than data.max_document_bytes.",
            got=f"{source.path}: {format_size(longest)}",
            fix=f"data.max_document_bytes={longest}\nor one record per line: {HOW_TO_WRITE_JSON}",
        )


def _shortened(name: str) -> str:
    name = name.replace("\n", "\\n")
    return name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."
