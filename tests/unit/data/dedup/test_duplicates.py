"""Deduplication: what is found, what is kept, the same bytes for any workers and interruptions."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from harness.file_digests import digests

from wikillm.core.errors import DataError
from wikillm.data.dedup import two_passes
from wikillm.data.dedup.duplicates import find_duplicates
from wikillm.data.dedup.minhash import (
    DOCUMENT,
    SHINGLE_UNITS,
    MinHashShard,
    minhash_path,
    minima_of,
)
from wikillm.data.filters.characters import grams_of, units_of
from wikillm.data.filters.documents import content_hash
from wikillm.data.filters.drop_list import DROP, EXACT
from wikillm.data.funnel import Funnel
from wikillm.data.prepare import prepare
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.sources.read import Cursor
from wikillm.data.tokenizer.tokenizer import copy_tokenizer

NEAR = {"dedup": "minhash", "val_fraction": 0.2}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "shard_range", lambda estimate: 20_000)


def article(rng: random.Random, length: int = 300) -> str:
    letters = (chr(0x4E00 + rng.randrange(2500)) for _ in range(length))
    return "".join("，" if i % 11 == 10 else letter for i, letter in enumerate(letters))


def edited(text: str, rng: random.Random, edits: int) -> str:
    """The text with so many characters replaced."""
    found = list(text)
    for at in rng.sample(range(len(found)), edits):
        found[at] = chr(0x4E00 + rng.randrange(2500))
    return "".join(found)


def similarity(a: str, b: str) -> float:
    one, other = (set(grams_of(units_of(text), SHINGLE_UNITS).tolist()) for text in (a, b))
    return len(one & other) / len(one | other)


def write(path: Path, texts: list[str]) -> Path:
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines))
    return path


def planted(seed: int = 0, count: int = 120) -> tuple[list[str], dict[int, int]]:
    """Articles with duplicates among them, and {number of a duplicate: number of its original}."""
    rng = random.Random(seed)
    texts = [article(rng) for _ in range(count)]
    duplicates = {}
    for at in range(count // 2, count, 6):
        of = rng.randrange(count // 2)
        texts[at] = texts[of] if at % 12 == 0 else edited(texts[of], rng, 2)
        duplicates[at] = of
    return texts, duplicates


@pytest.fixture
def hashed(monkeypatch) -> list[int]:
    """The numbers of the shards that the first pass hashes in this process."""
    numbers: list[int] = []

    class Counting(two_passes.MinHashJob):
        def __call__(self, raw, report):
            numbers.append(raw.number)
            return super().__call__(raw, report)

    monkeypatch.setattr(two_passes, "MinHashJob", Counting)
    return numbers


def test_planted_duplicates_are_dropped_and_all_else_is_kept(tmp_path, settings):
    texts, duplicates = planted()
    source = write(tmp_path / "a.jsonl", texts)
    offsets = np.cumsum([0, *(len(line) + 1 for line in source.read_bytes().split(b"\n"))])
    number = {int(offset): at for at, offset in enumerate(offsets)}
    store = prepare_store(settings(source, **NEAR))
    drops = np.fromfile(store.dir / "drops.bin", dtype=DROP)
    found = {number[int(drop["offset"])]: number[int(drop["kept_offset"])] for drop in drops}
    assert min(similarity(texts[at], texts[of]) for at, of in duplicates.items()) > 0.88
    assert found == duplicates
    exact = {number[int(drop["offset"])] for drop in drops if drop["percent"] == EXACT}
    assert exact == {at for at in duplicates if at % 12 == 0}
    funnel = store.manifest.funnel
    counts = {line.reason: (line.records, line.characters) for line in funnel.dropped}
    assert counts == {"exact copy": (5, 5 * 300), "near copy": (5, 5 * 300)}
    assert funnel.kept_records == 110 and store.manifest.duplicates == 0

    only_exact = prepare_store(settings(source, dedup="exact", val_fraction=0.2))
    assert only_exact.manifest.funnel.kept_records == 115
    none = prepare_store(settings(source, val_fraction=0.2))
    assert len({one.manifest.fingerprint for one in (store, only_exact, none)}) == 3


def test_any_number_of_workers_finds_the_same(tmp_path, settings):
    source = write(tmp_path / "a.jsonl", planted(seed=1)[0])
    found = []
    for workers in (1, 2):
        folder = tmp_path / f"area{workers}"
        store = prepare_store(
            settings(source, **NEAR, workers=workers, store=str(folder / "store"))
        )
        assert len(store.manifest.shards) > 3
        lists = {k: v for k, v in digests(folder).items() if k.startswith(".dedup-") and "/" in k}
        found.append((digests(store.dir), lists))
    assert found[0] == found[1]
    assert len(found[0][1]) == 2  # drops.bin and drops.json: the signatures were removed


def test_a_killed_first_pass_resumes_and_ends_the_same(tmp_path, settings, hashed):
    source = write(tmp_path / "a.jsonl", planted(seed=2, count=400)[0])
    expected = prepare_store(settings(source, **NEAR, store=str(tmp_path / "one/store")))
    hashed.clear()
    cfg = settings(source, **NEAR, store=str(tmp_path / "two/store"), shard_bytes=20_000)
    program = (
        "import sys\nfrom wikillm.config.schema import DataSection\n"
        "from wikillm.data.prepare.prepare import prepare_store\n"
        "prepare_store(DataSection.model_validate_json(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, cfg.model_dump_json()]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < deadline:
        if list(tmp_path.glob("two/.dedup-*/*.json")):
            os.kill(run.pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    run.wait()
    store = prepare_store(cfg)
    assert store.manifest.facts["data.dedup"] == expected.manifest.facts["data.dedup"]
    assert digests(store.dir) == digests(expected.dir)
    if run.returncode == -signal.SIGKILL:
        assert len(hashed) < len(store.manifest.shards)


def test_a_limit_of_text_reads_little_and_decides_the_same(tmp_path, settings, hashed):
    texts, duplicates = planted(seed=3, count=600)
    source = write(tmp_path / "a.jsonl", texts)
    size = len(texts[0].encode())
    store = prepare_store(settings(source, **NEAR, max_text_bytes=320 * size))
    at = kept = 0
    while kept < 320 or at in duplicates:  # up to the next kept document, which would not fit
        kept += at not in duplicates
        at += 1
    funnel = store.manifest.funnel
    assert funnel.kept_records == 320
    assert sum(line.records for line in funnel.dropped) == sum(one < at for one in duplicates)
    assert max(hashed) < 600 * size // 20_000 - 5
    assert hashed == sorted(set(hashed))


def test_nothing_is_dropped_for_being_like_a_dropped_document(tmp_path, settings):
    rng = random.Random(5)
    chain = [article(rng, 400)]
    for _ in range(6):
        chain.append(edited(chain[-1], rng, 6))
    source = write(tmp_path / "a.jsonl", chain + [article(rng) for _ in range(20)])
    cfg = settings(source, dedup="minhash", dedup_similarity=0.75, val_fraction=0.3)
    drops = np.fromfile(prepare_store(cfg).dir / "drops.bin", dtype=DROP)
    dropped = set(drops["offset"].tolist())
    assert dropped and not dropped & set(drops["kept_offset"].tolist())
    assert 0 < len(dropped) < 6  # the ends of the chain are not alike: a middle one is kept
    assert similarity(chain[0], chain[-1]) < 0.5


def test_dissimilar_documents_are_dropped_as_rarely_as_stated(tmp_path):
    """Of 2,000 pairs of similarity 0.5 to 0.62 none reaches 0.8; of 300 above 0.9 all do."""
    rng = random.Random(11)
    texts: list[str] = []
    alike: set[int] = set()
    for pair in range(2300):
        one = article(rng, 200)
        other = edited(one, rng, 1 if pair < 300 else 10)
        low, high = (0.9, 1.0) if pair < 300 else (0.5, 0.62)
        if low <= similarity(one, other) <= high:
            alike |= {len(texts) + 1} if pair < 300 else set()
            texts += [one, other]
    assert len(alike) > 200 and len(texts) > 2400
    rows = [(0, at, content_hash(text), len(text), 3 * len(text)) for at, text in enumerate(texts)]
    minhash_path(tmp_path, 0, "doc").write_bytes(np.array(rows, dtype=DOCUMENT).tobytes())
    minima = np.stack([minima_of(text, 0) for text in texts])
    minhash_path(tmp_path, 0, "min").write_bytes(minima.tobytes())
    shard = MinHashShard(0, Cursor(), Cursor(), len(texts), 0, Funnel())
    drops = find_duplicates(tmp_path, [shard], 0.8)
    assert set(drops["offset"].tolist()) == alike


def test_signatures_do_not_change():
    """Drop-lists depend on them; rensa must raise ALGORITHM_VERSION to change them."""
    found = minima_of("北京是中国的首都。The quick brown fox", 7)[:4].tolist()
    assert found == [3353895884, 829298559, 3319720203, 3224454667]
    assert minima_of("。。", 7).tolist() == minima_of("", 7).tolist() != minima_of("", 8).tolist()


def test_a_changed_drop_list_is_refused(tmp_path, settings):
    source = write(tmp_path / "a.jsonl", planted(seed=7, count=60)[0])
    plan = prepare.plan_store(settings(source, dedup="exact", val_fraction=0.2))
    assert plan.drop_list is not None
    plan.drop_list.path.write_bytes(b"")
    with pytest.raises(DataError, match="drop-list"):
        prepare.ensure_planned(plan)


def test_preparations_that_share_a_drop_list_wait_for_each_other(
    tmp_path, settings, monkeypatch, tokenizer_dir
):
    """Stores that differ in the tokenizer alone share one, which neither may remove."""
    source = write(tmp_path / "a.jsonl", planted(seed=8, count=60)[0])
    copy_tokenizer(tokenizer_dir, tmp_path / "other")
    config = tmp_path / "other" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "<|endoftext|>"}))
    second = settings(source, **NEAR, tokenizer=str(tmp_path / "other"))
    found: list[object] = []
    threads: list[threading.Thread] = []

    def meanwhile(*args):
        if not threads:
            other = threading.Thread(
                target=lambda: found.append(prepare.plan_store(second).drop_list)
            )
            threads.append(other)
            other.start()
            other.join(2)  # without the lock it ends within, and removes the signatures
        return find_duplicates(*args)

    monkeypatch.setattr(two_passes, "find_duplicates", meanwhile)
    plan = prepare.plan_store(settings(source, **NEAR))
    threads[0].join()
    assert plan.drop_list is not None and found == [plan.drop_list]


def test_an_exact_duplicate_of_a_near_one_is_a_near_duplicate_of_what_is_kept(tmp_path, settings):
    rng = random.Random(11)
    kept = article(rng)
    near = edited(kept, rng, 2)
    source = write(tmp_path / "a.jsonl", [kept, article(rng), near, near, kept])
    found = prepare.plan_store(settings(source, dedup="minhash", val_fraction=0.5)).drop_list
    assert found is not None and (found.exact, found.near) == (1, 2)
    drops = np.fromfile(found.path, dtype=DROP)
    assert drops["kept_offset"].tolist() == [0, 0, 0]
    assert drops["percent"][0] == drops["percent"][1] < 100 and drops["percent"][2] == EXACT


def test_signatures_that_a_killed_pass_left_beside_its_list_are_removed(tmp_path, settings):
    source = write(tmp_path / "a.jsonl", planted(seed=9, count=60)[0])
    cfg = settings(source, **NEAR)
    drops = prepare.plan_store(cfg).drop_list
    assert drops is not None
    (drops.path.parent / "00000.min").write_bytes(bytes(100))
    assert prepare.plan_store(cfg).drop_list == drops
    assert {path.name for path in drops.path.parent.iterdir()} == {"drops.bin", "drops.json"}
