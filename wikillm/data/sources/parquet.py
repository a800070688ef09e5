"""The text column of a Parquet file, row by row, in memory bounded by one row group's page and `BATCH_ROWS` rows.

Only that column is read. A row's offset is the UTF-8 bytes of the texts before it and one more for each of them: so
shards hold equal amounts of text, and a row is found again by adding up lengths, which decodes the column up to there
but makes no Python object. A null counts as an empty text.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wikillm.core.errors import DataError, did_you_mean
from wikillm.core.units import format_size
from wikillm.data.sources.fixes import filtered, setting
from wikillm.data.types import Item, SourceFile

MAGIC = b"PAR1"
BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20
TYPICAL_RATIO = 3.0
"""Bytes of text per byte on disk, for estimates: Snappy and Zstandard give 2 to 4 on prose."""


@contextmanager
def _opened(source: SourceFile) -> Iterator[Any]:
    """The file, with every complaint of Arrow turned into a DataError."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            "A Parquet file is damaged or cut off.",
            got=f"{source.path} ({format_size(source.size)}): {str(error).strip()}",
            fix="download it again, and compare its checksum",
        ) from None


def check_column(source: SourceFile) -> None:
    """Refuse a file that cannot be opened, has no rows, or no column of strings under the text key."""
    from pyarrow import types

    with _opened(source) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    if not rows:
        raise DataError("A Parquet file has no rows.", got=source.path, fix="leave it out")
    kinds = {field.name: field.type for field in schema}
    texts = []
    for name, kind in kinds.items():
        value = kind.value_type if types.is_dictionary(kind) else kind
        if types.is_string(value) or types.is_large_string(value) or types.is_string_view(value):
            texts.append(name)
    if source.text_key in texts:
        return
    raise DataError(
        f"The records have no text under {source.text_key!r} (data.text_key).",
        got=f"{source.path} has the columns "
        + ", ".join(f"{name} ({kind})" for name, kind in kinds.items()),
        fix=_fix(source, texts),
    )


def _fix(source: SourceFile, texts: list[str]) -> str:
    """The column that holds the text, by its name or by the length of its strings; without one, the way to JSON Lines."""
    if not texts:
        code = (
            'import sys,json,pyarrow.parquet as p; [print(json.dumps(r, default=lambda o: o.decode("utf-8", "replace") '
            "if isinstance(o, bytes) else str(o))) "
            "for b in p.ParquetFile(sys.stdin.buffer).iter_batches() for r in b.to_pylist()]"
        )
        return filtered(source.path, "none", f"python3 -c {shlex.quote(code)}", ".jsonl")
    same = next((name for name in texts if name.lower() == source.text_key.lower()), None)
    near = same or next((name for name in ("text", "content", "body") if name in texts), None)
    near = near or did_you_mean(source.text_key, texts)
    if near is None:
        with _opened(source) as file:
            batch = next(file.iter_batches(BATCH_ROWS, columns=texts))
        near = max(
            texts,
            key=lambda name: sum(len(value or "") for value in batch.column(name).to_pylist()),
        )
    return setting("data.text_key", near)


def split_parquet(
    source: SourceFile, start: int, limit: int, on_read: Callable[[int], None] | None = None
) -> Iterator[Item]:
    """One item per row from offset `start` on; `size` counts the one byte between texts. Raises DataError."""
    import pyarrow
    import pyarrow.compute as pc

    with _opened(source) as file:
        groups = file.metadata.num_row_groups
        offset = 0
        for group in range(groups):
            for batch in file.iter_batches(
                BATCH_ROWS, row_groups=[group], columns=[source.text_key]
            ):
                column = batch.column(0)
                if pyarrow.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                column = column.cast(pyarrow.large_binary())
                size = (pc.sum(pc.binary_length(column)).as_py() or 0) + len(column)
                if offset + size <= start:
                    offset += size
                    continue
                for value in column.to_pylist():
                    text = value or b""
                    if offset >= start:
                        yield offset, text if len(text) <= limit else None, len(text) + 1
                    offset += len(text) + 1
            if on_read is not None:
                on_read(source.size * (group + 1) // groups - source.size * group // groups)
