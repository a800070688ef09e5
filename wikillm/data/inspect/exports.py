"""Export a store as Megatron's .bin/.idx, as datatrove's .ds, or as Parquet with the text.

Megatron's .idx is little-endian. It contains "MMIDIDX\\0\\0", version 1 (u64), the type of the
tokens (u8), the number of sequences (u64) and of documents + 1 (u64). Then follow the lengths of
the sequences (i32), their byte offsets in .bin (i64) and the number of each document's first
sequence (i64, documents + 1 values). Megatron has no type for uint32. Ids are below 2^31, so their
bytes as int32 (type 4) are equal. Each document is one sequence and ends with EOS, as after
`preprocess_data.py --append-eod`.

datatrove's SPLIT.ds contains only token ids, of 2 bytes if the vocabulary fits, else 4.
SPLIT.ds.index contains the end of each document, in tokens (u64). SPLIT.ds.metadata is text:
TOKENIZER|BYTES, the number of tokens, that number in short form (1.2M).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import STAGING_SUFFIX, rename_durably
from wikillm.core.units import format_count
from wikillm.data.inspect.positions import documents_between
from wikillm.data.inspect.stats import document_lengths
from wikillm.data.store.store import SPLITS, Store, TokenStream

MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_INT32 = 4
_TOKENS = 1 << 22  # tokens copied at a time
_ROWS = 1000  # rows of a Parquet row group


def export_store(store: Store, kind: str, target: Path) -> list[Path]:
    """Write both splits of a store into the folder `target`, and return the files.

    A file gets its name when it is complete, and no file is overwritten. A split without documents
    gives no file.

    Args:
        kind: megatron (SPLIT.bin, SPLIT.idx), datatrove (SPLIT.ds, SPLIT.ds.index,
            SPLIT.ds.metadata) or parquet (SPLIT.parquet).

    Raises ConfigError when a file exists already.
    """
    suffixes, write = _FORMATS[kind]
    splits = [split for split in SPLITS if getattr(store, split).n_documents]
    paths = [target / f"{split}.{suffix}" for split in splits for suffix in suffixes]
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise ConfigError(
            "The export would overwrite files.",
            got=", ".join(taken),
            fix="choose another folder with --out",
        )
    target.mkdir(parents=True, exist_ok=True)
    for split in splits:
        write(store, split, target / split)
    return paths


def _to_megatron(store: Store, split: str, prefix: Path) -> None:
    stream = getattr(store, split)
    lengths = document_lengths(stream)
    if int(lengths.max()) > 2**31 - 1:
        raise DataError(
            "A document has more tokens than Megatron's format can hold.",
            got=f"{int(lengths.max()):,}",
        )
    with _staged(prefix.with_suffix(".bin")) as file:
        _copy_tokens(stream, file, "<i4")
    offsets = 4 * (np.cumsum(lengths) - lengths)
    with _staged(prefix.with_suffix(".idx")) as file:
        file.write(
            MEGATRON_MAGIC + struct.pack("<QBQQ", _VERSION, _INT32, len(lengths), len(lengths) + 1)
        )
        file.write(lengths.astype("<i4").tobytes())
        file.write(offsets.astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


def _copy_tokens(stream: TokenStream, file: BinaryIO, dtype: str) -> None:
    for start in range(0, stream.n_tokens, _TOKENS):
        file.write(
            stream.read(start, min(start + _TOKENS, stream.n_tokens)).astype(dtype).tobytes()
        )


def _to_datatrove(store: Store, split: str, prefix: Path) -> None:
    stream = getattr(store, split)
    info = store.manifest.tokenizer
    size = 2 if info.length <= 2**16 else 4
    with _staged(prefix.with_suffix(".ds")) as file:
        _copy_tokens(stream, file, f"<u{size}")
    with _staged(prefix.with_suffix(".ds.index")) as file:
        file.write(stream.document_ends().astype("<u8").tobytes())
    with _staged(prefix.with_suffix(".ds.metadata")) as file:
        text = f"{info.name}|{size}\n{stream.n_tokens}\n{format_count(stream.n_tokens)}T"
        file.write(text.encode())


def _to_parquet(store: Store, split: str, prefix: Path) -> None:
    """Write one row per document: its text, decoded from the ids, and its ids with EOS."""
    import pyarrow
    from pyarrow import parquet

    stream = getattr(store, split)
    tokenizer = store.tokenizer()
    documents = documents_between(store.manifest, stream, 0, stream.n_tokens)
    schema = pyarrow.schema(
        {
            "text": "string",
            "ids": pyarrow.list_(pyarrow.uint32()),
            "source": "string",
            "offset": "uint64",
            "content_hash": "string",
        }
    )
    with (
        _staged(prefix.with_suffix(".parquet")) as file,
        parquet.ParquetWriter(file, schema, compression="zstd") as out,
    ):
        while positions := list(islice(documents, _ROWS)):
            rows = []
            for position in positions:
                ids = stream.read(position.first, position.end)
                text = tokenizer.decode(ids[:-1].tolist())
                rows.append((text, ids, position.source, position.offset, position.content_hash))
            columns = [list(column) for column in zip(*rows, strict=True)]
            out.write_table(pyarrow.table(columns, schema=schema))


@contextmanager
def _staged(path: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name when it is complete, and is deleted if writing fails."""
    staged = path.with_name(f".{path.name}{STAGING_SUFFIX}")
    try:
        with open(staged, "wb") as file:
            yield file
        rename_durably(staged, path)
    finally:
        staged.unlink(missing_ok=True)


_FORMATS = {
    "megatron": (("bin", "idx"), _to_megatron),
    "datatrove": (("ds", "ds.index", "ds.metadata"), _to_datatrove),
    "parquet": (("parquet",), _to_parquet),
}
