"""Exports that other readers understand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from pyarrow import parquet

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError
from wikillm.data.inspect.exports import export_store
from wikillm.data.inspect.show import show_document
from wikillm.data.prepare.prepare import prepare_store


def read_megatron(prefix: Path) -> list[list[int]]:
    """By the format's description: header, lengths, byte offsets, first sequences of documents."""
    index = prefix.with_suffix(".idx").read_bytes()
    tokens = prefix.with_suffix(".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    version, code, sequences, boundaries = struct.unpack_from("<QBQQ", index, 9)
    assert (version, code) == (1, 4)
    at = 34
    lengths = struct.unpack_from(f"<{sequences}i", index, at)
    offsets = struct.unpack_from(f"<{sequences}q", index, at + 4 * sequences)
    firsts = struct.unpack_from(f"<{boundaries}q", index, at + 12 * sequences)
    assert len(index) == at + 12 * sequences + 8 * boundaries
    assert firsts == tuple(range(sequences + 1))
    assert sum(lengths) * 4 == len(tokens)
    each = zip(lengths, offsets, strict=True)
    return [list(struct.unpack_from(f"<{n}i", tokens, offset)) for n, offset in each]


def test_megatron_files_hold_every_document(store, documents, tmp_path):
    paths = export_store(store, "megatron", tmp_path / "out")
    assert sorted(path.name for path in paths) == ["train.bin", "train.idx", "val.bin", "val.idx"]
    for split in ("train", "val"):
        assert read_megatron(tmp_path / "out" / split) == documents(getattr(store, split))
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    with pytest.raises(ConfigError, match="overwrite"):
        export_store(store, "megatron", tmp_path / "out")


def test_parquet_holds_text_ids_and_positions_and_can_be_read_again(
    store, documents, tmp_path, settings
):
    export_store(store, "parquet", tmp_path / "out")
    rows = parquet.read_table(tmp_path / "out" / "val.parquet").to_pylist()
    assert [row["ids"] for row in rows] == documents(store.val)
    assert rows[3]["text"] == show_document(store, "val", 3)["text"]
    again = prepare_store(settings(tmp_path / "out", val_fraction=0.2))
    assert sorted(documents(again.train)) == sorted(documents(store.train))
    assert sorted(documents(again.val)) == sorted(documents(store.val))


def test_the_command_exports(store, tmp_path):
    words = ["export", "--to", "megatron", "--out", str(tmp_path / "m")]
    assert main(["data", *words, "--store", str(store.dir)]) == 0
    assert (tmp_path / "m" / "train.idx").is_file()
