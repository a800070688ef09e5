"""The text column of a Parquet file, in the memory of a row group's page and `BATCH_ROWS` rows.

Only that column is read. A row's offset is the UTF-8 bytes of the texts before it plus one for each
of them: shards hold equal amounts of text, and a row is found again by adding up lengths, which
decodes the column up to there but makes no Python objects. A null counts as an empty text.
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
_TO_JSON_LINES = (
    "import sys,json,pyarrow.parquet as p; "
    '[print(json.dumps(r, default=lambda o: o.decode("utf-8", "replace") '
    "if isinstance(o, bytes) else str(o))) "
    "for b in p.ParquetFile(sys.stdin.buffer).iter_batches() for r in b.to_pylist()]"
)


@contextmanager
def _opened(source: SourceFile) -> Iterator[Any]:
    """The file; Arrow's errors become DataError."""
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
    """Refuse a file that cannot be opened, has no rows, or no strings under the text key."""
    from pyarrow import types

    with _opened(source) as file:
        schema = file.schema_arrow
        rows = file.metadata.num_rows
    if not rows:
        raise DataError("A Parquet file has no rows.", got=source.path, fix="leave it out")
    texts = []
    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            texts.append(field.name)
    if source.text_key in texts:
        return
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise DataError(
        f"The records have no text under {source.text_key!r} (data.text_key).",
        got=f"{source.path} has the columns {columns}",
        fix=_fix(source, texts),
    )


def _fix(source: SourceFile, texts: list[str]) -> str:
    """The column with the text, by name or length of strings; without one, a conversion."""
    if not texts:
        return filtered(source.path, "none", f"python3 -c {shlex.quote(_TO_JSON_LINES)}", ".jsonl")
    same = next((name for name in texts if name.lower() == source.text_key.lower()), None)
    near = same or next((name for name in ("text", "content", "body") if name in texts), None)
    near = near or did_you_mean(source.text_key, texts)
    if near is None:
        with _opened(source) as file:
            batch = next(file.iter_batches(BATCH_ROWS, columns=texts))
        sizes = {
            name: sum(map(len, filter(None, batch.column(name).to_pylist()))) for name in texts
        }
        near = max(texts, key=sizes.__getitem__)
    return setting("data.text_key", near)


def split_parquet(
    source: SourceFile, start: int, limit: int, on_read: Callable[[int], None] | None = None
) -> Iterator[Item]:
    """One item per row from offset `start` on; `size` counts the byte between texts."""
    import pyarrow
    import pyarrow.compute as pc

    with _opened(source) as file:
        groups = file.metadata.num_row_groups
        offset = 0
        for group in range(groups):
            columns = [source.text_key]
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                column = batch.column(0)
                if pyarrow.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                column = column.cast(pyarrow.large_binary())
                # Before `start`, whole batches are skipped by their length.
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
