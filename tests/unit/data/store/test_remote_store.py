"""A store read from a web server through a bounded cache: the same batches, all verified."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from harness.file_server import serve

from wikillm.config.schema_data import DataSection, MixtureSource
from wikillm.core.errors import ConfigError, DataError, MachineError
from wikillm.data.fetch import cache as cache_module
from wikillm.data.fetch.cache import Cache
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.read.corpus import StoredCorpus
from wikillm.data.read.loader import BatchShape, train_loader
from wikillm.data.read.open import open_corpus, stream_corpus
from wikillm.data.store import remote_store
from wikillm.data.store.store import Store

T = 32


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "BACKOFF_SECONDS", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def local(tmp_path, texts, write_source, settings) -> Store:
    path = write_source(tmp_path, "plain.jsonl", texts(400))
    return prepare_store(settings(path, store=str(tmp_path / "served" / "store"), shard_bytes=8000))


@pytest.fixture
def server(local):
    with serve(local.dir.parent) as found:
        yield found


@pytest.fixture
def section(server, tmp_path):
    """`section(cache_bytes=...)`: the store by its address alone."""

    def make(**values: object) -> DataSection:
        cache = str(tmp_path / "cache")
        return DataSection(
            store=f"{server.url}/store", cache=cache, min_val_tokens=1, window_shards=2, **values
        )

    return make


def batches(store: Store, workers: int = 0, steps: int = 12) -> np.ndarray:
    order = StoredCorpus(store, 2).order(T, 5)
    shape = BatchShape(8, 1, 1, 0)
    loader = train_loader(store.train, order, shape, total_steps=steps, workers=workers)
    return np.concatenate([batch["input_ids"].numpy() for batch in loader])


def shard_files(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("stores/*/*/*") if p.suffix in (".tok", ".idx")}


def test_the_batches_are_those_of_the_local_store_and_only_what_is_read_is_fetched(
    local, server, section, tmp_path
):
    store = prepare_store(section())
    assert shard_files(tmp_path / "cache") == set(), "opening fetches no shard"
    assert store.manifest == local.manifest and store.tokenizer().sha256 == local.tokenizer().sha256
    assert np.array_equal(batches(store), batches(local))
    first = shard_files(tmp_path / "cache")
    assert 0 < len(first) < len(local.manifest.shards), "the first windows only"
    # beyond the first epoch
    assert np.array_equal(batches(store, workers=2, steps=60), batches(local, steps=60))
    assert np.array_equal(store.val.read(0, 50), local.val.read(0, 50))
    server.log.clear()
    again = prepare_store(section())
    assert np.array_equal(batches(again), batches(local))
    assert not any(path.endswith((".tok", ".idx", "tokenizer.json")) for path, _ in server.log)


def test_a_small_cache_keeps_its_bound_and_gives_equal_batches(local, section, tmp_path):
    limit = 4 * max(shard.splits["train"].tokens for shard in local.manifest.shards) * 4
    store = prepare_store(section(cache_bytes=limit))
    assert sum(split.tokens for split in store.manifest.splits.values()) * 4 > limit
    assert np.array_equal(batches(store, steps=40), batches(local, steps=40))
    held = sum(p.stat().st_size for p in (tmp_path / "cache").glob("stores/*/*/*.tok"))
    assert 0 < held <= limit
    with pytest.raises(MachineError, match="data.cache_bytes"):
        batches(prepare_store(section(cache_bytes=100)))


def test_a_damaged_shard_never_reaches_a_batch(local, server, section, tmp_path):
    path = local.dir / "train" / "00000.tok"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="does not have the sha256"):
        batches(prepare_store(section()))
    assert "00000.tok" not in shard_files(tmp_path / "cache")
    path.write_bytes(bytes(content[:-8]))
    with pytest.raises(DataError):
        batches(prepare_store(section()))


def test_cached_shards_are_read_without_the_server(local, tmp_path):
    cfg = DataSection(cache=str(tmp_path / "cache"), min_val_tokens=1, window_shards=2)
    with serve(local.dir.parent) as gone:
        cfg = cfg.model_copy(update={"store": f"{gone.url}/store"})
        seen = batches(prepare_store(cfg))
    store = prepare_store(cfg)
    assert np.array_equal(batches(store), seen)
    with pytest.raises(DataError, match="cannot be reached"):
        store.train.read(0, store.train.n_tokens)


def test_a_remote_store_that_is_built_again_gets_another_cache_folder(
    local, server, section, tmp_path, texts, write_source, settings
):
    old = prepare_store(section())
    old.train.read(0, 100)
    shutil.rmtree(local.dir)
    path = write_source(tmp_path, "plain.jsonl", texts(300, seed=4))
    anew = prepare_store(settings(path, store=str(local.dir), shard_bytes=8000))
    again = prepare_store(section())
    assert again.dir != old.dir and again.manifest == anew.manifest
    assert np.array_equal(batches(again), batches(anew))


def test_streaming_a_mixture_and_a_pickled_copy_read_a_remote_store(
    local, section, server, tmp_path
):
    streamed = stream_corpus(section(streaming="on"), is_main=True, is_local_main=True)
    assert np.array_equal(batches(streamed.store), batches(local))
    assert streamed.val.read(0, 50).tolist() == local.val.read(0, 50).tolist()
    parts = [
        MixtureSource(name="far", weight=1, store=f"{server.url}/store"),
        MixtureSource(name="near", weight=1, store=str(local.dir)),
    ]
    cfg = section().model_copy(update={"store": None})
    far = open_corpus(cfg.model_copy(update={"mixture": tuple(parts)}))
    near = open_corpus(cfg.model_copy(update={"mixture": (parts[1], parts[1])}))
    near_parts = [part.store.manifest.fingerprint for part in near.mixture]
    assert [part.store.manifest.fingerprint for part in far.mixture] == near_parts
    for stream in (far.train, pickle.loads(pickle.dumps(far.train))):
        assert stream.read(5, 900).tolist() == near.train.read(5, 900).tolist()


def test_an_address_without_a_store_and_a_build_at_an_address_are_refused(
    server, section, tmp_path
):
    with pytest.raises(DataError, match="cannot be read"):
        prepare_store(section().model_copy(update={"store": f"{server.url}/nothing"}))
    (server.root / "page").mkdir()
    (server.root / "page" / "manifest.json").write_text("<html>log in</html>")
    with pytest.raises(DataError, match="not the manifest of a token store"):
        prepare_store(section().model_copy(update={"store": f"{server.url}/page"}))
    with pytest.raises(ConfigError, match="not built there"):
        prepare_store(section().model_copy(update={"path": ("x.jsonl",)}))


def test_a_shard_that_another_process_removes_is_fetched_again(local, section, monkeypatch):
    """Making room for its own shard, it may remove one that is not mapped yet."""
    ensure = remote_store.RemoteShards.ensure
    removed = set()

    def ensure_and_lose(self, path: Path) -> None:
        ensure(self, path)
        if path not in removed:
            removed.add(path)
            path.unlink()

    monkeypatch.setattr(remote_store.RemoteShards, "ensure", ensure_and_lose)
    assert np.array_equal(batches(prepare_store(section())), batches(local))
    assert removed
    lose = lambda self, path: path.unlink(missing_ok=True)  # noqa: E731
    monkeypatch.setattr(remote_store.RemoteShards, "ensure", lose)
    with pytest.raises(DataError, match="cannot be read") as caught:
        batches(prepare_store(section()))
    assert "data.cache_bytes" in caught.value.fix


def test_ranks_that_waited_open_the_store_that_the_first_rank_found(local, server, tmp_path):
    cache, asked, url = Cache(str(tmp_path / "cache")), time.time(), f"{server.url}/store"
    first = remote_store.open_remote(url, cache)
    path = local.dir / "manifest.json"
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "0', 1))
    fingerprint = first.manifest.fingerprint
    assert json.loads(remote_store._manifest(url, cache, asked))["fingerprint"] == fingerprint
    assert remote_store.open_remote(url, cache).manifest.fingerprint == "0" + fingerprint


def test_a_remote_tokenizer_other_than_the_manifests_is_not_kept(local, section, tmp_path):
    path = local.dir / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match="tokenizer of a remote store"):
        prepare_store(section())
    assert not list((tmp_path / "cache").rglob("tokenizer.json"))
