"""Read the text column of a Parquet file, with memory for one page and `BATCH_ROWS` rows.

No other column is read. The offset of a row is the number of UTF-8 bytes of the texts before it,
plus one per text, so that shards hold equal amounts of text. A row is found again by adding up
lengths: the column is decoded up to the row, but no Python objects are made. A null counts as an
empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wikillm.core.errors import DataError
from wikillm.core.units import format_size
from wikillm.data.types import Item, SourceFile

MAGIC = b"PAR1"
BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20
TYPICAL_RATIO = 3.0
"""Bytes of text per byte on disk, for estimates: Snappy and Zstandard give 2 to 4 on prose."""


@contextmanager
def _opened(source: SourceFile) -> Iterator[Any]:
    """Open the file; Arrow's errors become DataError."""
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


def columns_of(source: SourceFile) -> list[tuple[str, str, bool]]:
    """Name and type of each column, and whether it holds strings.

    Raises DataError for a file that cannot be opened, or has no rows.
    """
    from pyarrow import types

    with _opened(source) as file:
        schema = file.schema_arrow
        rows = file.metadata.num_rows
    if not rows:
        raise DataError("A Parquet file has no rows.", got=source.path, fix="leave it out")
    found = []
    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        found.append((field.name, str(field.type), is_text))
    return found


def split_parquet(
    source: SourceFile, start: int, limit: int, on_read: Callable[[int], None] | None = None
) -> Iterator[Item]:
    """One item per row from offset `start` on; `size` includes the one byte added per text."""
    import pyarrow
    import pyarrow.compute as pc

    with _opened(source) as file:
        groups = file.metadata.num_row_groups
        offset = 0
        for group in range(groups):
            columns = [source.text_key]
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                column = batch.column(source.text_key)  # `a.b` also reads b of a struct a
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
