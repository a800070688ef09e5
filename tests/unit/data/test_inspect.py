"""Looking into a store, and reading what was exported with readers that know nothing of WikiLLM."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError, DataError
from wikillm.data.inspect import stats as inspect
from wikillm.data.inspect.exports import export_store
from wikillm.data.prepare import prepare
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.read.loader import Samples
from wikillm.data.read.stored import StoredCorpus


@pytest.fixture
def store(tmp_path, texts, write_source, settings, monkeypatch):
    monkeypatch.setattr(prepare, "shard_range", lambda estimate: 3000)
    return prepare_store(
        settings(write_source(tmp_path, "plain.jsonl", [*texts(120), *texts(9)]), val_fraction=0.2)
    )


def read_megatron(prefix: Path) -> list[list[int]]:
    """After the format's description: header, lengths, byte offsets, first sequence of each document."""
    index, tokens = prefix.with_suffix(".idx").read_bytes(), prefix.with_suffix(".bin").read_bytes()
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
    return [
        list(struct.unpack_from(f"<{n}i", tokens, o)) for n, o in zip(lengths, offsets, strict=True)
    ]


def documents(stream) -> list[list[int]]:
    ends = [0, *stream.document_ends().tolist()]
    return [stream.read(a, b).tolist() for a, b in zip(ends, ends[1:], strict=False)]


def test_stats_count_what_is_there(store):
    found = inspect.stats_of(store)
    lengths = [len(ids) for ids in documents(store.train)]
    train = found["splits"]["train"]
    assert train["documents"] == len(lengths)
    assert train["tokens"] == sum(lengths)
    assert train["length"]["median"] == np.median(lengths)
    assert (train["length"]["least"], train["length"]["most"]) == (min(lengths), max(lengths))
    for bin in train["histogram"]:
        assert bin["documents"] == sum(bin["from"] <= n < bin["below"] for n in lengths)
    assert sum(bin["documents"] for bin in train["histogram"]) == len(lengths)
    assert found["duplicates"] == 9
    text = inspect.stats_text(store)
    assert "#" * 40 in text and "9 documents are copies" in text and "kept" in text


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_document_is_shown_with_its_place(store, split):
    wanted = documents(getattr(store, split))
    for number in (0, 1, len(wanted) // 2, len(wanted) - 1):
        found = inspect.show_document(store, split, number)
        assert found["ids"] == wanted[number]
        line = Path(found["source"]).read_bytes()[found["offset"] :].split(b"\n")[0]
        assert json.loads(line)["text"] == found["text"]
        assert found["text"] in inspect.show_text(found)
    with pytest.raises(DataError, match="no such document"):
        inspect.show_document(store, split, len(wanted))


@pytest.mark.parametrize(
    ("length", "shards", "packing"), [(16, 2, "concat"), (100, 3, "best_fit"), (7, 99, "concat")]
)
def test_a_sample_is_shown_as_training_reads_it(store, length, shards, packing):
    order = StoredCorpus(store, shards, packing).order(length, 5)
    ends = [0, *store.train.document_ends().tolist()]
    for number in [*range(0, order.blocks_of_first_epoch, 5), order.blocks_of_first_epoch + 3]:
        found = inspect.show_sample(
            store, number, sequence_length=length, seed=5, window_shards=shards, packing=packing
        )
        labels = Samples(store.train, order, 1).__getitems__([number])["labels"][0]
        shown = [i for part in found["parts"] for i in store.train.read(*part["tokens"]).tolist()]
        assert shown == labels[labels != -100].tolist()
        assert found["targets"] == len(shown)
        for part in found["parts"]:
            assert (part["first"], part["end"]) == (
                ends[part["document"]],
                ends[part["document"] + 1],
            )
            assert part["first"] <= part["tokens"][0] < part["tokens"][1] <= part["end"]


def test_megatron_files_hold_every_document(store, tmp_path):
    paths = export_store(store, "megatron", tmp_path / "out")
    assert sorted(path.name for path in paths) == ["train.bin", "train.idx", "val.bin", "val.idx"]
    for split in ("train", "val"):
        assert read_megatron(tmp_path / "out" / split) == documents(getattr(store, split))
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    with pytest.raises(ConfigError, match="overwrite"):
        export_store(store, "megatron", tmp_path / "out")


def test_parquet_holds_text_ids_and_places_and_can_be_read_again(store, tmp_path, settings):
    export_store(store, "parquet", tmp_path / "out")
    rows = parquet.read_table(tmp_path / "out" / "val.parquet").to_pylist()
    assert [row["ids"] for row in rows] == documents(store.val)
    assert rows[3]["text"] == inspect.show_document(store, "val", 3)["text"]
    again = prepare_store(settings(tmp_path / "out", val_fraction=0.2))
    assert sorted(documents(again.train)) == sorted(documents(store.train))
    assert sorted(documents(again.val)) == sorted(documents(store.val))


def test_the_command_line(store, tmp_path, capsys):
    def answer(*words: str) -> dict:
        capsys.readouterr()
        assert main(["data", *words, "--store", str(store.dir), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert answer("stats")["splits"]["train"]["documents"] == store.train.n_documents
    assert answer("show", "2")["document"] == 2
    assert answer("show", "2", "--sample", "--sequence-length", "9")["targets"] == 9
    assert answer("verify")["files"] == 4 * len(store.manifest.shards) + 1
    assert len(answer("export", "--to", "parquet", "--out", str(tmp_path / "cli"))["files"]) == 2
    assert main(["data", "stats"]) == 0  # the newest in stores/
    assert str(store.manifest.fingerprint[:12]) in capsys.readouterr().out
    path = next((store.dir / "train").glob("*.tok"))
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    assert main(["data", "verify", "--store", str(store.dir)]) == 4
    assert path.name in capsys.readouterr().err
