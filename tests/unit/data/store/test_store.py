"""Building and reading stores: every token once, the same bytes from every build, damage found."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from harness.file_digests import digests

from wikillm.core.errors import DataError, MachineError
from wikillm.core.files import sha256_file
from wikillm.data.inspect.summary import summary_json, summary_of
from wikillm.data.inspect.verify import verify
from wikillm.data.prepare import build as build_module
from wikillm.data.prepare import prepare
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.read.corpus import StoredCorpus
from wikillm.data.store.manifest import Manifest
from wikillm.data.store.store import Store


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "shard_range", lambda estimate: 3000)


@pytest.fixture
def build(tmp_path, write_source, settings):
    """`build(texts, kind=..., **settings)`: the store of these texts in a file of that kind."""

    def make(texts: list[str], kind: str = "plain.jsonl", **values: object) -> Store:
        return prepare_store(settings(write_source(tmp_path, kind, texts), **values))

    return make


def documents(store: Store) -> list[list[int]]:
    """Token ids of all documents, EOS included, both splits."""
    found = []
    for stream in (store.train, store.val):
        start = 0
        for end in stream.document_ends():
            found.append(stream.read(start, int(end)).tolist())
            start = int(end)
        assert start == stream.n_tokens  # nothing behind the last EOS
    return found


def test_every_token_of_every_document_is_stored_exactly_once(build, texts):
    expected = texts(150)
    store = build(expected, val_fraction=0.2)
    tokenizer = store.tokenizer()
    wanted = sorted([*tokenizer.encode(text), tokenizer.eos_id] for text in expected)
    assert sorted(documents(store)) == wanted
    assert len(store.manifest.shards) > 3
    assert store.train.n_documents + store.val.n_documents == 150
    assert 10 < store.val.n_documents < 60
    assert store.train.text_bytes + store.val.text_bytes == len("".join(expected).encode())
    ids = [token for document in documents(store) for token in document]
    assert ids.count(tokenizer.eos_id) == 150  # a literal <|endoftext|> is no border
    assert any("<|endoftext|>" in text for text in expected)


def test_any_number_of_workers_gives_the_same_bytes(build, tmp_path, texts):
    found = []
    for workers in (1, 3):
        how = {"workers": workers, "tokenizer": "train:400", "store": str(tmp_path / f"s{workers}")}
        found.append(digests(build(texts(200), "multi-stream.jsonl.bz2", **how).dir))
    assert found[0] == found[1]
    assert len(found[0]) > 30


def test_the_documents_are_the_same_in_every_format(build, texts):
    found = []
    for kind in (
        *("plain.jsonl", "array.json", "two-members.jsonl.gz", "multi-stream.jsonl.bz2"),
        *("array.json.bz2", "two-streams.jsonl.xz", "frames.jsonl.zst"),
        *("table.csv", "table.tsv.zst", "rows.parquet"),
    ):
        found.append(documents(build(texts(60), kind)))
    assert len(found[0]) == 60 and all(one == found[0] for one in found)


def test_equal_texts_are_on_one_side_and_stay_there_when_data_is_added(build, texts):
    once = texts(80)
    first = build(once, val_fraction=0.3)
    more = once + texts(40, seed=5) + once + ["\u0065\u0301 " + once[3], "é " + once[3]]
    second = build(more, "array.json", val_fraction=0.3)

    def hashes(store: Store, split: str) -> set[int]:
        return {int(h) for index in getattr(store, split).indexes() for h in index["hash"]}

    assert not hashes(second, "train") & hashes(second, "val")
    assert hashes(first, "val") <= hashes(second, "val")
    assert hashes(first, "train") <= hashes(second, "train")
    assert second.manifest.duplicates == 81  # 80 copies, and one text in two normal forms


def test_reading_across_shards_pickling_and_counting(build, texts):
    store = build(texts(150), val_fraction=0.05)
    stream = store.train
    every = stream.read(0, stream.n_tokens)
    assert every.dtype == np.uint32
    copy = pickle.loads(pickle.dumps(stream))
    rng = np.random.default_rng(0)
    ends = stream.document_ends()
    for _ in range(50):
        start, stop = sorted(rng.integers(0, stream.n_tokens + 1, 2).tolist())
        assert np.array_equal(copy.read(start, stop), every[start:stop])
        within = ends[(ends > start) & (ends <= stop)]
        assert np.array_equal(copy.document_ends(start, stop), within)
    counts = stream.count_tokens(store.manifest.tokenizer.length)
    assert np.array_equal(counts, np.bincount(every, minlength=store.manifest.tokenizer.length))
    for start, stop in ((-1, 2), (0, stream.n_tokens + 1), (5, 4)):
        with pytest.raises(IndexError):
            stream.read(start, stop)
    with pytest.raises(DataError, match="outside the vocabulary"):
        stream.count_tokens(10)


def test_the_index_leads_back_to_the_source(tmp_path, texts, write_source, settings):
    expected = texts(50)
    kinds = enumerate(("plain.jsonl", "array.json"))
    paths = [write_source(tmp_path, kind, expected[i::2]) for i, kind in kinds]
    store = prepare_store(settings(*paths))
    found = set()
    for stream in (store.train, store.val):
        for entry in np.concatenate(list(stream.indexes())):
            content = Path(store.manifest.sources[entry["source"]].path).read_bytes()
            record, _ = json.JSONDecoder().raw_decode(content[int(entry["offset"]) :].decode())
            assert len(record["text"].encode()) == entry["text_bytes"]
            found.add(record["text"])
    assert found == set(expected)


def test_the_first_bytes_of_text_in_whole_documents(build, tmp_path, texts):
    expected = texts(200)
    kind = "plain.jsonl.bz2"
    limit = 20_000
    kept, size = 0, 0
    while size + len(expected[kept].encode()) <= limit:
        size += len(expected[kept].encode())
        kept += 1
    store, other = (
        build(expected, kind, max_text_bytes=limit, workers=w, store=str(tmp_path / f"s{w}"))
        for w in (1, 3)
    )
    assert digests(store.dir) == digests(other.dir)
    assert store.train.n_documents + store.val.n_documents == kept
    assert store.train.text_bytes + store.val.text_bytes == size
    assert store.manifest.stopped_at_text_limit
    assert store.manifest.funnel.kept_records == store.manifest.funnel.read_records == kept
    records = list((store.dir / "shards").iterdir())
    assert len(records) == len(store.manifest.shards)  # nothing built ahead is left
    assert not build(expected, kind, max_text_bytes=10**9).manifest.stopped_at_text_limit


def test_the_manifest_survives_json_and_names_its_files(build, tmp_path, texts):
    store = build(texts(40))
    manifest = store.manifest
    assert Manifest.parse(json.dumps(manifest.to_json()).encode()) == manifest
    assert manifest.tokenizer.sha256 == sha256_file(store.tokenizer_dir / "tokenizer.json")
    assert manifest.sources[0].sha256 == sha256_file(tmp_path / "plain.jsonl")
    corpus = StoredCorpus(store, 8)
    summary = json.loads(json.dumps(summary_json(corpus)))
    assert summary["splits"]["train"]["tokens"] == store.train.n_tokens
    assert "kept" in summary_of(corpus)


def test_bad_records_are_counted_quarantined_and_stop_the_build_beyond_the_share(
    tmp_path, texts, settings
):
    lines = [json.dumps({"text": text}) for text in texts(95)]
    bad = ['{"text": broken}', '{"other": 1}', '{"text": "a\\u0000"}', '{"text": "\\ud800"}', "[]"]
    for i, line in enumerate(bad):
        lines.insert(10 * i + 1, line)
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="5 of 100 records cannot be read") as caught:
        prepare_store(settings(path))
    assert f"{path}:2: not JSON" in caught.value.got
    assert caught.value.fix.endswith("data.max_bad_fraction=0.05")
    store = prepare_store(settings(path, max_bad_fraction=0.05))  # resumes at the built shards
    assert (store.manifest.funnel.bad_records, store.manifest.funnel.kept_records) == (5, 95)
    lines = (store.dir / "quarantine.jsonl").read_text().splitlines()
    quarantined = [json.loads(line) for line in lines]
    assert [q["head"] for q in quarantined] == bad
    content = path.read_text()
    assert all(content[q["offset"] :].startswith(q["head"]) for q in quarantined)


def test_long_documents_and_other_pages_are_in_the_funnel(tmp_path, mediawiki, settings):
    pages = [(f"条目{i}", 0, f"'''第{i}篇'''" + "正文。" * 40) for i in range(20)]
    pages += [("甲 -> 乙", 0, "#REDIRECT [[乙]]"), ("Talk:甲", 1, "x")]
    pages += [("短", 0, "短"), ("长", 0, "长" * 2000)]
    path = tmp_path / "dump.xml"
    path.write_text(mediawiki(pages))
    store = prepare_store(settings(path, max_document_bytes=4000, val_fraction=0.3))
    dropped = {line.reason: line.records for line in store.manifest.funnel.dropped}
    assert dropped == {
        "redirect": 1,
        "other namespace": 1,
        "too short": 1,
        "longer than data.max_document_bytes": 1,
    }
    assert store.manifest.funnel.kept_records == 20
    assert store.manifest.funnel.table().splitlines()[-1].startswith("kept")


def test_nothing_left_shows_the_funnel(tmp_path, settings):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": ""}\n{"text": " "}\n')
    for tokenizer in ({}, {"tokenizer": "train:400"}):
        with pytest.raises(DataError, match="Nothing is left") as caught:
            prepare_store(settings(path, **tokenizer))
        assert "empty" in caught.value.got
        assert "100.0%" in caught.value.got


def test_a_full_disk_is_predicted(build, tmp_path, texts, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(MachineError, match="will not fit"):
        build(texts(9))


# --- damage


def test_damage_is_found(build, texts, tmp_path):
    store = build(texts(80))
    verify(store)
    damages = {
        "train/00001.tok": [lambda c: c[:-4], lambda c: c[:9] + bytes([c[9] ^ 1]) + c[10:], None],
        "manifest.json": [
            lambda c: c[:-50],
            lambda c: c.replace(b'"format_version": 1', b'"format_version": 99'),
        ],
        "tokenizer/tokenizer.json": [None],
    }
    for name, changes in damages.items():
        path = store.dir / name
        content = path.read_bytes()
        for change in changes:
            path.unlink() if change is None else path.write_bytes(change(content))
            with pytest.raises(DataError):
                verify(Store.open(store.dir))
            path.write_bytes(content)
    verify(Store.open(store.dir))


def test_opening_lists_folders_and_reading_finds_short_files(
    tmp_path, texts, write_source, settings, monkeypatch
):
    wanted = settings(write_source(tmp_path, "plain.jsonl", texts(200)), shard_bytes=1000)
    store = prepare_store(wanted)
    stats: list[object] = []
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: stats.append(path) or real(path, **how))
    Store.open(store.dir)
    assert len(stats) < 5 < len(store.manifest.shards)
    for kind, size in (("tok", 4), ("idx", 32)):
        shard = store.dir / "train" / f"00001.{kind}"
        content = shard.read_bytes()
        shard.write_bytes(content[:-size])
        opened = Store.open(store.dir)
        what = f"{shard} has {len(content) - size} bytes instead of {len(content)}"
        with pytest.raises(DataError, match=what):
            opened.train.read(0, opened.train.n_tokens)
            list(opened.train.indexes())
        with pytest.raises(DataError, match=what):  # the first rank compares all sizes at the start
            prepare_store(wanted)
        assert prepare_store(wanted, is_main=False).manifest == store.manifest
        shard.unlink()
        with pytest.raises(DataError, match=f"{shard} is missing"):
            Store.open(store.dir)
        shard.write_bytes(content)
