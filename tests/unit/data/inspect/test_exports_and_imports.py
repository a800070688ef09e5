"""Exports that other readers understand, imports of them, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError, DataError
from wikillm.data.inspect import imports as inspect_import
from wikillm.data.inspect.exports import export_store
from wikillm.data.inspect.imports import import_store
from wikillm.data.inspect.show import show_document
from wikillm.data.inspect.verify import verify
from wikillm.data.prepare.prepare import prepare_store


def hashes(stream) -> list[int]:
    return np.concatenate([index["hash"] for index in stream.indexes()]).tolist()


def write_megatron(
    prefix: Path, sequences: list[list[int]], borders: list[int], code: int, dtype: str
) -> None:
    arrays = [np.array(ids, dtype) for ids in sequences]
    prefix.with_suffix(".bin").write_bytes(b"".join(array.tobytes() for array in arrays))
    lengths = [len(ids) for ids in sequences]
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)])[:-1]
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sequences), len(borders))
    parts = (np.array(lengths, "<i4"), offsets.astype("<i8"), np.array(borders, "<i8"))
    prefix.with_suffix(".idx").write_bytes(header + b"".join(part.tobytes() for part in parts))


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


@pytest.mark.parametrize("kind", ["megatron", "datatrove"])
def test_an_exported_store_is_imported_unchanged(store, documents, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(inspect_import, "SHARD_TOKENS", 2000)
    monkeypatch.setattr(inspect_import, "_BATCH_DOCUMENTS", 7)
    export_store(store, kind, tmp_path / "out")
    files = [
        tmp_path / "out" / f"{split}.{'bin' if kind == 'megatron' else 'ds'}"
        for split in ("train", "val")
    ]
    again = import_store(kind, files, store.tokenizer_dir, tmp_path / "again", 0.2)
    verify(again)
    assert len(again.manifest.shards) > 2
    for split in ("train", "val"):  # by content hash, so each document is on the side where it was
        old, new = getattr(store, split), getattr(again, split)
        assert documents(new) == documents(old)
        assert hashes(new) == hashes(old)
        assert new.text_bytes == old.text_bytes
    assert again.manifest.tokenizer.sha256 == store.manifest.tokenizer.sha256
    assert again.manifest.funnel.kept_records == store.train.n_documents + store.val.n_documents
    assert not list(tmp_path.glob(".again*"))
    with pytest.raises(ConfigError, match="exists already"):
        import_store(kind, files, store.tokenizer_dir, tmp_path / "again", 0.2)


@pytest.mark.parametrize(("length", "size"), [(400, 2), (70_000, 4)])
def test_datatrove_files_have_tokens_ends_and_metadata(
    store, documents, tmp_path, length, size, monkeypatch
):
    monkeypatch.setattr(type(store.manifest.tokenizer), "length", length)
    export_store(store, "datatrove", tmp_path / "out")
    wanted = documents(store.val)
    tokens = (tmp_path / "out" / "val.ds").read_bytes()
    ends = (tmp_path / "out" / "val.ds.index").read_bytes()
    numbers = struct.unpack(f"<{len(tokens) // size}{'H' if size == 2 else 'I'}", tokens)
    assert list(numbers) == [i for ids in wanted for i in ids]
    assert struct.unpack(f"<{len(wanted)}Q", ends) == tuple(
        np.cumsum([len(ids) for ids in wanted]).tolist()
    )
    note = (tmp_path / "out" / "val.ds.metadata").read_text().splitlines()
    assert note[0].endswith(f"|{size}")
    assert int(note[1]) == store.val.n_tokens


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8")])
def test_megatron_documents_of_several_sequences_without_eos(
    store, documents, tmp_path, code, dtype
):
    tokenizer = store.tokenizer()
    sentences = [tokenizer.encode(text) for text in ("第一句。", "the second", "三", "four", "")]
    # one document is empty, and so is the last
    write_megatron(tmp_path / "x", sentences, [0, 2, 2, 4, 5], code, dtype)
    found = import_store("megatron", [tmp_path / "x"], store.tokenizer_dir, tmp_path / "s", 1e-9)
    eos = [tokenizer.eos_id]
    assert documents(found.train) == [
        sentences[0] + sentences[1] + eos,
        sentences[2] + sentences[3] + eos,
    ]
    assert [(line.reason, line.records) for line in found.manifest.funnel.dropped] == [("empty", 2)]


def test_ids_and_files_that_do_not_fit_are_refused(store, tmp_path):
    length = store.manifest.tokenizer.length

    def refused(kind: str, name: str) -> str:
        with pytest.raises(DataError) as caught:
            import_store(kind, [tmp_path / name], store.tokenizer_dir, tmp_path / "s", 0.1)
        assert not (tmp_path / "s").exists()
        assert not list(tmp_path.glob(".s*"))
        return f"{caught.value.what} {caught.value.got}"

    write_megatron(tmp_path / "ids", [[1, 2], [3, length]], [0, 1, 2], 4, "<i4")
    assert f"document 1: {length}" in refused("megatron", "ids.bin")
    write_megatron(tmp_path / "neg", [[1, -2]], [0, 1], 4, "<i4")
    assert "document 0: -2" in refused("megatron", "neg.bin")
    write_megatron(tmp_path / "float", [[1]], [0, 1], 7, "<f4")
    assert "type 7" in refused("megatron", "float.bin")
    write_megatron(tmp_path / "short", [[1, 2, 3]], [0, 1], 4, "<i4")
    (tmp_path / "short.bin").write_bytes(b"\1\0\0\0")
    assert "points outside" in refused("megatron", "short")
    index = (tmp_path / "ids.idx").read_bytes()
    for content, word in (
        (b"GIF89a" + index, "does not begin"),
        (index[:-1], "instead of"),
        (index + b"\0\0", "instead of"),
    ):
        (tmp_path / "ids.idx").write_bytes(content)
        assert word in refused("megatron", "ids.bin")
    assert "cannot be read" in refused("megatron", "absent.bin")
    (tmp_path / "x.ds").write_bytes(bytes(10))
    (tmp_path / "x.ds.index").write_bytes(struct.pack("<2Q", 2, 4))
    assert "lists 4 tokens" in refused("datatrove", "x.ds")
    (tmp_path / "x.ds.index").write_bytes(b"123")
    assert "not a multiple of 8" in refused("datatrove", "x.ds")
    (tmp_path / "x.ds").write_bytes(b"")
    (tmp_path / "x.ds.index").write_bytes(b"")
    assert "no document" in refused("datatrove", "x.ds")


def test_the_command_makes_a_store_that_trains(store, tmp_path, settings, capsys):
    export_store(store, "datatrove", tmp_path / "out")
    files, tokenizer = str(tmp_path / "out" / "train.ds"), str(store.tokenizer_dir)
    words = ["import", files, "--from", "datatrove", "--tokenizer", tokenizer]
    words += ["--out", str(tmp_path / "s"), "--val-fraction", "0.3", "--json"]
    assert main(["data", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["funnel"]["kept_records"] == store.train.n_documents
    opened = prepare_store(settings(store=str(tmp_path / "s")))
    assert opened.train.n_tokens + opened.val.n_tokens == store.train.n_tokens
    assert main(["data", "show", "0", "--store", str(tmp_path / "s")]) == 0
    words = ["export", "--to", "megatron", "--out", str(tmp_path / "m")]
    assert main(["data", *words, "--store", str(tmp_path / "s")]) == 0
