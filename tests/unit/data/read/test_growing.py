"""A store that is read while it is built: the same samples, and a reason when the build fails."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from wikillm.core.errors import DataError
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.read.corpus import Corpus, StoredCorpus
from wikillm.data.read.growing import GrowingOrder
from wikillm.data.read.loader import BatchShape, train_loader
from wikillm.data.read.open import stream_corpus

T = 16


def streamed(cfg, **values) -> Corpus:
    """As the only rank sees it, with small windows."""
    values = {"streaming": "on", "window_shards": 2, "shard_bytes": 40_000, **values}
    return stream_corpus(cfg.model_copy(update=values), is_main=True, is_local_main=True)


def samples(store: Corpus, order, first: int, stop: int) -> list[list[int]]:
    return [
        [int(token) for start, end in ranges for token in store.train.read(start, end + 1)]
        for ranges in order.target_ranges(np.arange(first, stop))
    ]


def builder_pid(store: Path) -> int:
    return int(json.loads(store.with_name(f".{store.name}.lock").read_text())["pid"])


def slow_source(path: Path, records: int, bad_from: int | None = None) -> Path:
    """Records that take the builder a while: many, and long."""
    with open(path, "w") as file:
        for i in range(records):
            line = json.dumps({"text": f"document {i} " + f"word{i % 97} " * 400})
            file.write("{\n" if bad_from is not None and i >= bad_from else line + "\n")
    return path


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(("workers", "packing"), [(1, "best_fit"), (2, "concat")])
def test_streamed_samples_are_those_of_the_prepared_store(
    tmp_path, texts, write_source, settings, workers, packing
):
    path = write_source(tmp_path, "plain.jsonl", texts(1500))
    store = streamed(
        settings(path, store=str(tmp_path / "streamed"), workers=workers),
        shard_bytes=8000,
        packing=packing,
    )
    try:
        order = store.order(T, 7)
        assert isinstance(order, GrowingOrder)
        begun_early = not store.is_complete
        length = order._order.blocks_of_first_epoch
        while not order.corpus.is_complete:  # sample by sample, at the builder's heels
            order.wait_for(length)
            length = max(length + 1, order._order.blocks_of_first_epoch)
        found = samples(store, order, 0, length + 40)
        targets = order.targets_between(3, length + 20)
    finally:
        store.close()
    assert begun_early, "the store was finished before the first sample was read"
    prepared = prepare_store(settings(path, store=str(tmp_path / "whole"), shard_bytes=8000))
    whole = StoredCorpus(prepared, 2, packing).order(T, 7)
    assert samples(prepared, whole, 0, length + 40) == found
    assert whole.targets_between(3, length + 20) == targets
    assert store.manifest.fingerprint == prepared.manifest.fingerprint
    files = {p.relative_to(prepared.dir) for p in prepared.dir.rglob("*") if p.is_file()}
    assert files == {p.relative_to(store.dir) for p in store.dir.rglob("*") if p.is_file()}
    assert all((prepared.dir / f).read_bytes() == (store.dir / f).read_bytes() for f in files)


def test_evaluation_reads_the_first_window_streamed_or_prepared(
    tmp_path, texts, write_source, settings
):
    path = write_source(tmp_path, "plain.jsonl", texts(1500))
    cfg = settings(path, store=str(tmp_path / "s"), val_fraction=0.2)
    first = streamed(cfg, shard_bytes=8000)
    held_out = first.val.read(0, first.val.n_tokens).tolist()
    first.close()
    prepared = prepare_store(cfg.model_copy(update={"shard_bytes": 8000}))
    again = streamed(cfg, shard_bytes=8000)
    again.close()
    assert again.train_tokens == prepared.train.n_tokens and again.builder is None
    assert again.val.read(0, again.val.n_tokens).tolist() == held_out
    assert prepared.val.n_tokens > len(held_out) == prepared.val.first_shards(2).n_tokens


def test_an_interrupted_build_is_resumed(tmp_path, settings):
    cfg = settings(slow_source(tmp_path / "x.jsonl", 4000), store=str(tmp_path / "s"))
    store = streamed(cfg)
    store.close()
    assert not (store.dir / "manifest.json").exists(), "it was finished too early to be left"
    times = {p: p.stat().st_mtime_ns for p in (store.dir / "train").glob("*.tok")}
    again = streamed(cfg)
    assert pickle.loads(pickle.dumps(again)).builder is None  # a loader process has no builder
    again.close()
    assert times and times == {p: p.stat().st_mtime_ns for p in times}, "shards were built again"


def test_a_killed_builder_ends_the_wait_with_its_reason(tmp_path, settings):
    store = streamed(settings(slow_source(tmp_path / "x.jsonl", 8000), store=str(tmp_path / "s")))
    os.kill(builder_pid(store.dir), signal.SIGKILL)
    with pytest.raises(DataError, match="builds the token store died") as caught:
        store.order(T, 7).wait_for(10**9)
    assert "killed by signal 9" in caught.value.got
    *whole, last = batches_until_error(store)  # as loader processes answer
    assert whole and isinstance(last, DataError) and "killed by signal 9" in str(last)
    store.close()
    other = pickle.loads(pickle.dumps(store))  # a rank that has no builder gets the error, too
    with pytest.raises(DataError, match="builds the token store died"):
        GrowingOrder(other, T, 7).wait_for(10**9)


def test_a_stalled_builder_is_reported(tmp_path, settings):
    cfg = settings(slow_source(tmp_path / "x.jsonl", 8000), store=str(tmp_path / "s"))
    store = streamed(cfg)
    store.stall_seconds = 1.0
    os.kill(builder_pid(store.dir), signal.SIGSTOP)
    try:
        with pytest.raises(DataError, match="has stalled") as caught:
            store.order(T, 7).wait_for(10**9)
        assert "shards are final" in caught.value.got and "data.stall_seconds" in caught.value.fix
    finally:
        os.kill(builder_pid(store.dir), signal.SIGCONT)
        store.close()


def test_bad_records_during_a_streamed_build_are_reported_with_file_and_line(tmp_path, settings):
    path = slow_source(tmp_path / "x.jsonl", 3000, bad_from=2000)
    store = streamed(settings(path, store=str(tmp_path / "s")))
    with pytest.raises(DataError, match="records cannot be read") as caught:
        store.order(T, 7).wait_for(10**9)
    assert f"{path}:2001" in caught.value.got
    store.close()
    path = slow_source(tmp_path / "y.jsonl", 12)  # less than a window
    lines = path.read_text().splitlines()
    lines[1::5] = ["{"] * len(lines[1::5])
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="cannot be read"):
        streamed(settings(path, store=str(tmp_path / "t")))


def test_the_builder_ends_when_its_parent_does(tmp_path, settings):
    cfg = settings(slow_source(tmp_path / "x.jsonl", 8000), store=str(tmp_path / "s"), workers=2)
    child = os.fork()
    if child == 0:
        try:
            streamed(cfg)
            time.sleep(60)
        finally:
            os._exit(1)
    until((tmp_path / "s" / "committed.json").exists)
    pid = builder_pid(tmp_path / "s")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    stat = Path(f"/proc/{pid}/stat")
    until(lambda: not stat.exists() or "Z" in stat.read_text().split()[2], 20)
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_a_folder_of_other_facts_is_refused_not_read(tmp_path, texts, write_source, settings):
    cfg = settings(slow_source(tmp_path / "x.jsonl", 4000), store=str(tmp_path / "s"))
    streamed(cfg).close()  # leaves an unfinished store
    with pytest.raises(DataError, match="made from other sources or settings"):
        streamed(cfg.model_copy(update={"val_fraction": 0.3}))


def test_a_source_of_one_window_is_prepared_first(tmp_path, texts, write_source, settings):
    path = write_source(tmp_path, "plain.jsonl", texts(60))
    store = streamed(settings(path), streaming="auto")
    assert isinstance(store, StoredCorpus) and store.train_tokens == store.train.n_tokens


def batches_of(store: Corpus, steps: int, workers: int, seed: int = 7) -> list:
    shape = BatchShape(micro_batch=4, accumulation=2, world_size=1, rank=0)
    order = store.order(T, seed)
    return list(train_loader(store.train, order, shape, total_steps=steps, workers=workers))


def test_loader_processes_behind_a_builder_read_the_samples_of_the_prepared_store(
    tmp_path, texts, write_source, settings
):
    path = write_source(tmp_path, "plain.jsonl", texts(1500))
    store = streamed(settings(path, store=str(tmp_path / "streamed")), shard_bytes=8000)
    try:
        begun_early = not store.is_complete
        found = batches_of(store, 300, workers=2)  # beyond the first windows
    finally:
        store.close()
    assert begun_early, "the store was finished before the first batch was read"
    prepared = prepare_store(settings(path, store=str(tmp_path / "whole"), shard_bytes=8000))
    expected = batches_of(StoredCorpus(prepared, 2), 300, workers=0)
    assert [b["input_ids"].tolist() for b in found] == [b["input_ids"].tolist() for b in expected]
    assert [b["labels"].tolist() for b in found] == [b["labels"].tolist() for b in expected]


def batches_until_error(store: Corpus):
    shape = BatchShape(micro_batch=64, accumulation=1, world_size=1, rank=0)
    for batch in train_loader(store.train, store.order(T, 7), shape, total_steps=10**6, workers=2):
        yield batch
        if not isinstance(batch, dict):
            return
