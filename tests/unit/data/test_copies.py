"""Copies in two passes: what is found, what is kept, and the same bytes for any workers and interruptions."""

from __future__ import annotations

import hashlib
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

from wikillm.core.errors import DataError
from wikillm.core.files import sha256_file
from wikillm.data.dedup import minhash as sign
from wikillm.data.dedup import two_passes
from wikillm.data.dedup.duplicates import find_copies
from wikillm.data.dedup.minhash import SIGNED, SignedShard, minima_of, signed_path
from wikillm.data.filters.characters import grams_of, units_of
from wikillm.data.filters.drop_list import DROP, DROP_LIST_NAME, EXACT, NEAR_COPY, DropList
from wikillm.data.funnel import Funnel
from wikillm.data.prepare import prepare
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.prepare.shard import content_hash
from wikillm.data.sources.read import Cursor
from wikillm.data.tokenizer.tokenizer import copy_tokenizer


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "shard_range", lambda estimate: 20_000)


def article(rng: random.Random, length: int = 300) -> str:
    return "".join(
        "，" if i % 11 == 10 else chr(0x4E00 + rng.randrange(2500)) for i in range(length)
    )


def edited(text: str, rng: random.Random, edits: int) -> str:
    """The text with so many characters replaced."""
    found = list(text)
    for at in rng.sample(range(len(found)), edits):
        found[at] = chr(0x4E00 + rng.randrange(2500))
    return "".join(found)


def similarity(a: str, b: str) -> float:
    one, other = (set(grams_of(units_of(text), sign.SHINGLE_UNITS).tolist()) for text in (a, b))
    return len(one & other) / len(one | other)


def write(path: Path, texts: list[str]) -> Path:
    path.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    )
    return path


def planted(seed: int = 0, count: int = 120) -> tuple[list[str], dict[int, int]]:
    """Distinct articles, and then copies among them: (texts, {number of a copy: number of what it copies})."""
    rng = random.Random(seed)
    texts = [article(rng) for _ in range(count)]
    copies = {}
    for at in range(count // 2, count, 6):
        of = rng.randrange(count // 2)
        texts[at] = texts[of] if at % 12 == 0 else edited(texts[of], rng, 2)
        copies[at] = of
    return texts, copies


def digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def test_planted_copies_are_dropped_and_all_else_is_kept(tmp_path, settings):
    texts, copies = planted()
    source = write(tmp_path / "a.jsonl", texts)
    offsets = np.cumsum([0, *(len(line) + 1 for line in source.read_bytes().split(b"\n"))])
    number = {int(offset): at for at, offset in enumerate(offsets)}
    store = prepare_store(settings(source, dedup="minhash", val_fraction=0.2))
    drops = np.fromfile(store.dir / "drops.bin", dtype=DROP)
    found = {number[int(drop["offset"])]: number[int(drop["kept_offset"])] for drop in drops}
    assert min(similarity(texts[at], texts[of]) for at, of in copies.items()) > 0.88
    assert found == copies
    assert {number[int(d["offset"])] for d in drops if d["percent"] == EXACT} == {
        at for at in copies if at % 12 == 0
    }
    counts = {
        line.reason: (line.records, line.characters) for line in store.manifest.funnel.dropped
    }
    assert counts == {"exact copy": (5, 5 * 300), "near copy": (5, 5 * 300)}
    assert store.manifest.funnel.kept_records == 110 and store.manifest.duplicates == 0

    exact = prepare_store(settings(source, dedup="exact", val_fraction=0.2))
    assert exact.manifest.funnel.kept_records == 115
    assert (
        len(
            {
                s.manifest.fingerprint
                for s in (store, exact, prepare_store(settings(source, val_fraction=0.2)))
            }
        )
        == 3
    )


def test_any_number_of_workers_finds_the_same(tmp_path, settings):
    texts, _ = planted(seed=1)
    source = write(tmp_path / "a.jsonl", texts)
    found = []
    for workers in (1, 2):
        folder = tmp_path / f"area{workers}"
        store = prepare_store(
            settings(
                source,
                dedup="minhash",
                workers=workers,
                val_fraction=0.2,
                store=str(folder / "store"),
            )
        )
        assert len(store.manifest.shards) > 3
        found.append(
            (
                digests(store.dir),
                {k: v for k, v in digests(folder).items() if k.startswith(".dedup-") and "/" in k},
            )
        )
    assert found[0] == found[1]
    assert len(found[0][1]) == 2  # drops.bin and drops.json: the signatures are gone


def test_a_killed_first_pass_goes_on_and_ends_the_same(tmp_path, settings, monkeypatch):
    texts, _ = planted(seed=2, count=400)
    source = write(tmp_path / "a.jsonl", texts)
    expected = prepare_store(
        settings(source, dedup="minhash", val_fraction=0.2, store=str(tmp_path / "one/store"))
    )
    cfg = settings(
        source,
        dedup="minhash",
        val_fraction=0.2,
        store=str(tmp_path / "two/store"),
        shard_bytes=20_000,
    )
    program = (
        "import sys\nfrom wikillm.config.schema import DataSection\nfrom wikillm.data.prepare.prepare import prepare_store\n"
        "prepare_store(DataSection.model_validate_json(sys.argv[1]))"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, cfg.model_dump_json()], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < deadline:
        if list(tmp_path.glob("two/.dedup-*/*.json")):
            os.kill(run.pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    run.wait()
    signed = []
    monkeypatch.setattr(two_passes, "SignJob", counting(two_passes.SignJob, signed))
    store = prepare_store(cfg)
    assert store.manifest.facts["data.dedup"] == expected.manifest.facts["data.dedup"]
    assert digests(store.dir) == digests(expected.dir)
    if run.returncode == -signal.SIGKILL:
        assert len(signed) < len(store.manifest.shards)


def counting(job_type: type, numbers: list[int]) -> type:
    class Counting(job_type):  # type: ignore[misc,valid-type]
        def __call__(self, raw, report):
            numbers.append(raw.number)
            return super().__call__(raw, report)

    return Counting


def test_a_limit_of_text_reads_little_and_decides_the_same(tmp_path, settings, monkeypatch):
    texts, copies = planted(seed=3, count=600)
    source = write(tmp_path / "a.jsonl", texts)
    signed: list[int] = []
    monkeypatch.setattr(two_passes, "SignJob", counting(two_passes.SignJob, signed))
    size = len(texts[0].encode())
    store = prepare_store(
        settings(source, dedup="minhash", max_text_bytes=320 * size, val_fraction=0.2)
    )
    at, kept = 0, 0
    while kept < 320 or at in copies:  # up to the next kept document, which would not fit
        kept += at not in copies
        at += 1
    assert store.manifest.funnel.kept_records == 320
    assert sum(line.records for line in store.manifest.funnel.dropped) == sum(
        copy < at for copy in copies
    )
    assert max(signed) < 600 * size // 20_000 - 5
    assert signed == sorted(set(signed))


def test_nothing_is_dropped_for_being_like_a_dropped_document(tmp_path, settings):
    rng = random.Random(5)
    chain = [article(rng, 400)]
    for _ in range(6):
        chain.append(edited(chain[-1], rng, 6))
    source = write(tmp_path / "a.jsonl", chain + [article(rng) for _ in range(20)])
    store = prepare_store(
        settings(source, dedup="minhash", dedup_similarity=0.75, val_fraction=0.3)
    )
    drops = np.fromfile(store.dir / "drops.bin", dtype=DROP)
    dropped = set(drops["offset"].tolist())
    assert dropped and not dropped & set(drops["kept_offset"].tolist())
    assert 0 < len(dropped) < 6  # the ends of the chain are not alike: a middle one is kept
    assert similarity(chain[0], chain[-1]) < 0.5


def test_dissimilar_documents_are_dropped_as_rarely_as_stated(tmp_path):
    """2,000 pairs of similarity 0.5 to 0.62: none reaches 0.8. And of 300 pairs above 0.9 all are found."""
    rng = random.Random(11)
    texts, alike = [], set()
    for pair in range(2300):
        one = article(rng, 200)
        other = edited(one, rng, 1 if pair < 300 else 10)
        wanted = (0.9, 1.0) if pair < 300 else (0.5, 0.62)
        if wanted[0] <= similarity(one, other) <= wanted[1]:
            alike |= {len(texts) + 1} if pair < 300 else set()
            texts += [one, other]
    assert len(alike) > 200 and len(texts) > 2400
    rows = [(0, at, content_hash(text), len(text), 3 * len(text)) for at, text in enumerate(texts)]
    signed_path(tmp_path, 0, "doc").write_bytes(np.array(rows, dtype=SIGNED).tobytes())
    minima = np.stack([minima_of(text, 0) for text in texts])
    signed_path(tmp_path, 0, "min").write_bytes(minima.tobytes())
    drops = find_copies(
        tmp_path, [SignedShard(0, Cursor(), Cursor(), len(texts), 0, Funnel())], 0.8
    )
    assert set(drops["offset"].tolist()) == alike


def test_signatures_do_not_change():
    """A store's drop-list depends on them; another version of the library has to say so (ALGORITHM_VERSION)."""
    assert minima_of("北京是中国的首都。The quick brown fox", 7)[:4].tolist() == EXPECTED_MINIMA
    assert minima_of("。。", 7).tolist() == minima_of("", 7).tolist() != minima_of("", 8).tolist()


EXPECTED_MINIMA = [3353895884, 829298559, 3319720203, 3224454667]


def test_a_changed_drop_list_is_refused(tmp_path, settings):
    texts, _ = planted(seed=7, count=60)
    source = write(tmp_path / "a.jsonl", texts)
    plan = prepare.plan_store(settings(source, dedup="exact", val_fraction=0.2))
    assert plan.drop_list is not None
    plan.drop_list.path.write_bytes(b"")
    with pytest.raises(DataError, match="drop-list"):
        prepare.ensure_planned(plan)


def test_preparations_that_share_a_drop_list_take_turns(
    tmp_path, settings, monkeypatch, tokenizer_dir
):
    """Stores that differ in the tokenizer alone have one drop-list: the second must not remove what the first reads."""
    texts, _ = planted(seed=8, count=60)
    source = write(tmp_path / "a.jsonl", texts)
    copy_tokenizer(tokenizer_dir, tmp_path / "other")
    config = tmp_path / "other" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "<|endoftext|>"}))
    common = {"dedup": "minhash", "val_fraction": 0.2}
    first = settings(source, **common)
    second = settings(source, **common, tokenizer=str(tmp_path / "other"))
    found: list[object] = []
    threads: list[threading.Thread] = []

    def meanwhile(*args):
        if not threads:
            threads.append(
                threading.Thread(target=lambda: found.append(prepare.plan_store(second).drop_list))
            )
            threads[0].start()
            threads[0].join(2)  # without a turn it ends within, and takes the signatures along
        return find_copies(*args)

    monkeypatch.setattr(two_passes, "find_copies", meanwhile)
    plan = prepare.plan_store(first)
    threads[0].join()
    assert plan.drop_list is not None and found == [plan.drop_list]


def test_an_exact_copy_of_a_near_copy_is_a_near_copy_of_what_is_kept(tmp_path, settings):
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
    cfg = settings(source, dedup="minhash", val_fraction=0.2)
    drops = prepare.plan_store(cfg).drop_list
    assert drops is not None
    (drops.path.parent / "00000.min").write_bytes(bytes(100))
    assert prepare.plan_store(cfg).drop_list == drops
    assert {path.name for path in drops.path.parent.iterdir()} == {"drops.bin", "drops.json"}


def test_a_shard_of_many_small_files_is_looked_up_in_one_go(tmp_path):
    """30,000 files in one shard; looked for file by file among all records, this took minutes."""
    count = 30_000
    entries = np.zeros(count // 2, dtype=DROP)
    entries["source"], entries["percent"] = np.arange(0, count, 2), 90
    path = tmp_path / DROP_LIST_NAME
    path.write_bytes(entries.tobytes())
    found = DropList(path, sha256_file(path), 0, len(entries)).between(
        dict.fromkeys(range(count), (0, 1))
    )
    assert set(found) == {(number, 0) for number in range(0, count, 2)}
    assert {dropped.reason for dropped in found.values()} == {NEAR_COPY}
