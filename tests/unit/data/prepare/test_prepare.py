"""Preparation: one builder, any number of ranks, kills, changed settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.file_digests import digests
from pydantic import ValidationError

from wikillm.core.errors import DataError
from wikillm.data.prepare import prepare
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.tokenizer import find

PROGRAM = """
import os, sys, json
from wikillm.config.schema_data import DataSection
from wikillm.core.errors import WikiLLMError
from wikillm.data.prepare import prepare
prepare.shard_range = lambda estimate: 8000
try:
    is_main = os.environ.get("RANK", "0") == "0"
    store = prepare.prepare_store(DataSection(**json.loads(sys.argv[1])), is_main=is_main)
except WikiLLMError as error:
    print("REFUSED", error.what)
    sys.exit(int(error.exit_code))
print("OPENED", store.dir, store.train.n_tokens)
"""


def start(cfg, **environment) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, cfg.model_dump_json(exclude_defaults=True)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "shard_range", lambda estimate: 8000)


def test_a_killed_build_resumes_and_ends_in_the_same_bytes(
    tmp_path, source, settings, small_shards
):
    path = source(1500)
    whole = settings(path, tokenizer="train:400", store=str(tmp_path / "whole"))
    reference = digests(prepare_store(whole).dir)
    cfg = settings(path, tokenizer="train:400", store=str(tmp_path / "killed"))
    records = tmp_path / "killed" / "shards"
    seen = []
    for wanted in (3, 15):
        process = start(cfg)
        while process.poll() is None:
            if records.is_dir() and len(list(records.glob("*.json"))) >= wanted:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the build was over before it could be killed"
        assert not (tmp_path / "killed" / "manifest.json").exists()
        seen.append(sorted(records.glob("*.json")))
        if wanted == 15:  # a gap: a later shard is finished while an earlier one is missing
            records.joinpath("00002.json").unlink()
    times = {p: p.stat().st_mtime_ns for p in records.glob("*.json")}
    assert digests(prepare_store(cfg).dir) == reference
    kept = [p for p, ns in times.items() if p.stat().st_mtime_ns == ns]
    assert len(kept) >= len(seen[-1]) - 2, "finished shards were built again"


def test_many_ranks_build_once_and_open_the_same_store(source, settings, small_shards):
    path = source(700)
    cfg = settings(path, tokenizer="auto", workers=2)
    ranks = [start(cfg, RANK=str(rank)) for rank in range(3)]
    outputs = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], outputs
    lines = [out.splitlines()[-1] for out, _ in outputs]
    assert len(set(lines)) == 1
    assert lines[0].startswith("OPENED stores/")
    assert len([path for path in Path("stores").iterdir() if path.is_dir()]) == 1
    assert [len(out.splitlines()) for out, _ in outputs][1:] == [1, 1]  # the other ranks are quiet
    again = prepare_store(cfg)
    assert lines[0] == f"OPENED {again.dir} {again.train.n_tokens}"


def test_the_next_process_resumes_when_the_builder_dies(source, settings):
    path = source(1500)
    cfg = settings(path)
    first = start(cfg)
    while first.poll() is None and not list(Path("stores").glob("*/shards/*.json")):
        time.sleep(0.005)
    second = start(cfg)
    first.kill()
    first.communicate()
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out.splitlines()[-1][:6]) == (0, "OPENED"), err


def test_waiting_ranks_fail_for_the_same_reason(tmp_path, texts, settings):
    lines = [json.dumps({"text": text}) for text in texts(1100)] + ["{"] * 300
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    ranks = [start(settings(path), RANK=str(rank)) for rank in range(3)]
    outputs = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [4, 4, 4], outputs
    (reason,) = {out.splitlines()[-1] for out, _ in outputs}
    assert reason.startswith("REFUSED ")
    assert reason.endswith("records cannot be read: more than data.max_bad_fraction=0.01.")


def test_a_store_of_other_facts_is_refused_naming_them(tmp_path, source, settings):
    path = source(60)
    place = str(tmp_path / "mine")
    prepare_store(settings(path, store=place))
    prepare_store(settings(path, store=place, workers=2, max_bad_fraction=0.5))  # decide nothing
    for changed in ({"val_fraction": 0.4}, {"max_text_bytes": 5000}, {"tokenizer": "train:300"}):
        with pytest.raises(DataError, match="made from other sources or settings") as caught:
            prepare_store(settings(path, store=place, **changed))
        assert f"data.{next(iter(changed))}: the store has" in caught.value.got
    path.write_text(path.read_text() + '{"text": "one more"}\n')
    with pytest.raises(DataError, match="made from other sources or settings") as caught:
        prepare_store(settings(path, store=place))
    assert "data.path" in caught.value.got
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="neither empty nor a token store"):
        prepare_store(settings(path, store=str(other)))


def test_each_set_of_facts_has_its_own_default_store(tmp_path, source, settings):
    path = source(60)
    first = prepare_store(settings(path))
    assert first.dir == Path("stores") / first.manifest.fingerprint[:12]
    assert prepare_store(settings(path, val_fraction=0.3)).dir != first.dir
    moved = tmp_path / "elsewhere.jsonl"
    path.rename(moved)
    assert prepare_store(settings(moved)).dir == first.dir  # the content counts, not the name


def test_too_few_held_out_tokens_name_a_fraction_that_works(source, settings):
    path = source(400)
    total = sum(s.tokens for s in prepare_store(settings(path)).manifest.splits.values())
    wanted = total // 5
    with pytest.raises(DataError, match="held out for validation") as caught:
        prepare_store(settings(path, min_val_tokens=wanted))
    fraction = float(caught.value.fix.split()[0].partition("=")[2])
    store = prepare_store(settings(path, min_val_tokens=wanted, val_fraction=fraction))
    assert wanted <= store.val.n_tokens < wanted + 300  # one document more at most
    with pytest.raises(DataError, match="held out") as caught:
        prepare_store(settings(path, min_val_tokens=total))
    assert "data.min_val_tokens=" in caught.value.fix
    with pytest.raises(ValidationError, match="less than 1"):
        settings(path, val_fraction=1.5)


def test_nothing_left_to_train_on_is_reported(source, settings):
    path = source(4)
    with pytest.raises(DataError, match="Nothing is left to train on: 0 tokens") as caught:
        prepare_store(settings(path, val_fraction=0.9999))
    assert "4 of 4 documents are held out" in str(caught.value)
    fraction = float(caught.value.fix.split()[0].partition("=")[2])
    assert prepare_store(settings(path, val_fraction=fraction)).val.n_documents == 1


def test_auto_keeps_its_trained_tokenizer_until_qwen2s_is_found(
    source, settings, tokenizer_dir, monkeypatch
):
    path = source(60)
    trained = prepare_store(settings(path, tokenizer="auto"))
    assert trained.manifest.tokenizer.name == "train:8000"
    assert "trained on this corpus" in trained.manifest.tokenizer.origin

    def refuse(*args):
        raise AssertionError("another download was tried")

    monkeypatch.setattr(find, "download_qwen2", refuse)
    assert prepare_store(settings(path, tokenizer="auto")).dir == trained.dir
    monkeypatch.setattr(find, "_is_qwen2", lambda tokenizer: True)
    monkeypatch.setenv("WIKILLM_TOKENIZER", str(tokenizer_dir))
    found = prepare_store(settings(path, tokenizer="auto"))
    assert (found.manifest.tokenizer.name, found.dir == trained.dir) == ("qwen2", False)
