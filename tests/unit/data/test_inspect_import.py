"""Tokens out of a store and into one again, and what is refused on the way."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError, DataError
from wikillm.data.inspect import imports as inspect_import
from wikillm.data.inspect.exports import export_store
from wikillm.data.inspect.imports import import_store
from wikillm.data.prepare import prepare
from wikillm.data.prepare.prepare import prepare_store


@pytest.fixture
def store(tmp_path, texts, write_source, settings, monkeypatch):
    monkeypatch.setattr(prepare, "shard_range", lambda estimate: 3000)
    return prepare_store(
        settings(write_source(tmp_path, "plain.jsonl", texts(150)), val_fraction=0.2)
    )


def documents(stream) -> list[list[int]]:
    ends = [0, *stream.document_ends().tolist()]
    return [stream.read(a, b).tolist() for a, b in zip(ends, ends[1:], strict=False)]


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


@pytest.mark.parametrize("kind", ["megatron", "datatrove"])
def test_what_was_exported_comes_back(store, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(inspect_import, "SHARD_TOKENS", 2000)
    monkeypatch.setattr(inspect_import, "_BATCH_DOCUMENTS", 7)
    export_store(store, kind, tmp_path / "out")
    files = [
        tmp_path / "out" / f"{split}.{'bin' if kind == 'megatron' else 'ds'}"
        for split in ("train", "val")
    ]
    again = import_store(kind, files, store.tokenizer_dir, tmp_path / "again", 0.2)
    again.verify(full=True)
    assert len(again.manifest.shards) > 2
    for split in ("train", "val"):  # by content hash, so each document is on the side where it was
        old, new = getattr(store, split), getattr(again, split)
        assert documents(new) == documents(old)
        assert hashes(new) == hashes(old)
        assert new.text_bytes == old.text_bytes
    assert again.manifest.tokenizer.sha256 == store.manifest.tokenizer.sha256
    assert again.manifest.funnel.kept_records == store.train.n_documents + store.val.n_documents
    assert not list(tmp_path.glob(".again*"))
    with pytest.raises(ConfigError, match="overwrite"):
        import_store(kind, files, store.tokenizer_dir, tmp_path / "again", 0.2)


@pytest.mark.parametrize(("length", "size"), [(400, 2), (70_000, 4)])
def test_datatrove_files_are_tokens_ends_and_a_note(store, tmp_path, length, size, monkeypatch):
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
def test_megatron_documents_of_several_sequences_without_eos(store, tmp_path, code, dtype):
    tokenizer = store.tokenizer()
    sentences = [tokenizer.encode(text) for text in ("第一句。", "the second", "三", "four", "")]
    write_megatron(
        tmp_path / "x", sentences, [0, 2, 2, 4, 5], code, dtype
    )  # one document is empty, and so is the last
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
        (index + b"\0\0", "multimodal"),
    ):
        (tmp_path / "ids.idx").write_bytes(content)
        assert word in refused("megatron", "ids.bin")
    assert "cannot be read" in refused("megatron", "absent.bin")
    (tmp_path / "x.ds").write_bytes(bytes(10))
    (tmp_path / "x.ds.index").write_bytes(struct.pack("<2Q", 2, 4))
    assert "speaks of 4 tokens" in refused("datatrove", "x.ds")
    (tmp_path / "x.ds.index").write_bytes(b"123")
    assert "no multiple of 8" in refused("datatrove", "x.ds")
    (tmp_path / "x.ds").write_bytes(b"")
    (tmp_path / "x.ds.index").write_bytes(b"")
    assert "no document" in refused("datatrove", "x.ds")


def test_the_command_makes_a_store_that_trains(store, tmp_path, settings, capsys):
    export_store(store, "datatrove", tmp_path / "out")
    words = [
        "import",
        str(tmp_path / "out" / "train.ds"),
        "--from",
        "datatrove",
        "--tokenizer",
        str(store.tokenizer_dir),
    ]
    assert (
        main(["data", *words, "--out", str(tmp_path / "s"), "--val-fraction", "0.3", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["funnel"]["kept_records"] == store.train.n_documents
    opened = prepare_store(settings(store=str(tmp_path / "s")))
    assert opened.train.n_tokens + opened.val.n_tokens == store.train.n_tokens
    assert main(["data", "show", "0", "--store", str(tmp_path / "s")]) == 0
    assert (
        main(
            [
                "data",
                "export",
                "--to",
                "megatron",
                "--out",
                str(tmp_path / "m"),
                "--store",
                str(tmp_path / "s"),
            ]
        )
        == 0
    )
