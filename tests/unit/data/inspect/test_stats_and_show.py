"""Counts, documents and samples of a store, on the command line too."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError, DataError
from wikillm.data.inspect.positions import documents_of
from wikillm.data.inspect.show import show_document, show_sample, show_text
from wikillm.data.inspect.stats import stats_of, stats_text
from wikillm.data.order.blocks import IGNORED
from wikillm.data.read.corpus import StoredCorpus
from wikillm.data.read.loader import Samples


def test_stats_count_documents_and_lengths(store, documents):
    found = stats_of(store)
    lengths = [len(ids) for ids in documents(store.train)]
    train = found["splits"]["train"]
    assert (train["documents"], train["tokens"]) == (len(lengths), sum(lengths))
    assert train["length"]["median"] == np.median(lengths)
    assert (train["length"]["least"], train["length"]["most"]) == (min(lengths), max(lengths))
    for bin in train["histogram"]:
        assert bin["documents"] == sum(bin["from"] <= n < bin["below"] for n in lengths)
    assert sum(bin["documents"] for bin in train["histogram"]) == len(lengths)
    assert found["duplicates"] == 9
    text = stats_text(store)
    assert "#" * 40 in text and "9 documents are copies" in text and "kept" in text


@pytest.mark.parametrize("split", ["train", "val"])
def test_documents_are_shown_with_their_position_in_the_source(store, documents, split):
    wanted = documents(getattr(store, split))
    for number in (0, 1, len(wanted) // 2, len(wanted) - 1):
        found = show_document(store, split, number)
        assert found["ids"] == wanted[number]
        line = Path(found["source"]).read_bytes()[found["offset"] :].split(b"\n")[0]
        assert json.loads(line)["text"] == found["text"]
        assert found["text"] in show_text(found)
    with pytest.raises(DataError, match="no document with this number"):
        show_document(store, split, len(wanted))


@pytest.mark.parametrize(
    ("length", "shards", "packing"), [(16, 2, "concat"), (100, 3, "best_fit"), (7, 99, "concat")]
)
def test_a_sample_is_shown_as_training_reads_it(store, length, shards, packing):
    order = StoredCorpus(store, shards, packing).order(length, 5)
    ends = [0, *store.train.document_ends().tolist()]
    how = {"sequence_length": length, "seed": 5, "window_shards": shards, "packing": packing}
    for number in [*range(0, order.blocks_of_first_epoch, 9), order.blocks_of_first_epoch + 3]:
        found = show_sample(store, number, **how)
        named = documents_of(StoredCorpus(store, shards, packing), order, [number])
        assert [each.document for each in named] == list(
            dict.fromkeys(part["document"] for part in found["parts"])
        )
        for position in named:
            assert (
                asdict(position).items() <= show_document(store, "train", position.document).items()
            )
        labels = Samples(store.train, order, 1).batch([number])["labels"][0]
        shown = [i for part in found["parts"] for i in store.train.read(*part["tokens"]).tolist()]
        assert shown == labels[labels != IGNORED].tolist()
        assert found["targets"] == len(shown)
        for part in found["parts"]:
            assert [part["first"], part["end"]] == ends[part["document"] :][:2]
            assert part["first"] <= part["tokens"][0] < part["tokens"][1] <= part["end"]
    with pytest.raises(ConfigError, match="must be at least 0"):
        show_sample(store, -1, **how)


def test_the_command_line(store, tmp_path, capsys, monkeypatch):
    def answer(*words: str) -> dict:
        capsys.readouterr()
        assert main(["data", *words, "--store", str(store.dir), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert answer("stats")["splits"]["train"]["documents"] == store.train.n_documents
    assert answer("show", "2")["document"] == 2
    assert answer("show", "2", "--sample", "--sequence-length", "9")["targets"] == 9
    assert answer("verify")["files"] == 4 * len(store.manifest.shards) + 1
    assert len(answer("export", "--to", "parquet", "--out", str(tmp_path / "cli"))["files"]) == 2
    monkeypatch.chdir(tmp_path)
    assert main(["data", "stats"]) == 4
    assert "no token store in stores/" in capsys.readouterr().err
    copy = tmp_path / "stores" / "copy"
    shutil.copytree(store.dir, copy)
    assert main(["data", "stats"]) == 0  # the newest in stores/
    assert store.manifest.fingerprint[:12] in capsys.readouterr().out
    path = next((copy / "train").glob("*.tok"))
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    assert main(["data", "verify", "--store", str(copy)]) == 4
    assert path.name in capsys.readouterr().err
