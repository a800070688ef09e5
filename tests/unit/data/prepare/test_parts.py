"""A store built in parts, by several processes, has the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from harness.file_digests import digests

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import STAGING_SUFFIX
from wikillm.core.lock import FileLock
from wikillm.data.prepare.build import finished_shards
from wikillm.data.prepare.parts import Part, build_part, cut_shards
from wikillm.data.prepare.prepare import plan_store, prepare_store
from wikillm.data.store.store import Store


@pytest.fixture
def corpus(tmp_path, texts):
    """About 50 shards in two files, the first with blank lines, the second compressed."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in texts(1200)]
    (folder / "a.jsonl").write_text("\n\n".join(lines[:700]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[700:]).encode()))
    return folder


@pytest.fixture
def make(corpus, settings, tmp_path):
    def make(name: str, **values):
        common = {"tokenizer": "train:300", "shard_bytes": 10_000}
        return settings(corpus, store=str(tmp_path / name / "store"), **common, **values)

    return make


@pytest.fixture
def whole(make) -> dict[str, str]:
    """The digests of a store that was built at once."""
    return digests(prepare_store(make("whole")).dir)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0:3", [0, 1, 2]),
        ("8:99", [8, 9]),
        ("0/1", list(range(10))),
        ("0/3", [0, 1, 2]),
        ("2/3", [6, 7, 8, 9]),
        ("3/20", [1]),
    ],
)
def test_a_part_is_a_range_of_shards(text, numbers):
    assert list(Part.parse(text).of(10)) == numbers
    if "/" in text:
        every = [n for i in range(7) for n in Part.parse(f"{i}/7").of(10)]
        assert every == list(range(10))


@pytest.mark.parametrize("text", ["3", "3:3", "4:2", "8/8", "-1:2", "a:b", "1:2:3", ""])
def test_an_invalid_part_is_refused(text):
    with pytest.raises(ConfigError, match="must be A:B"):
        Part.parse(text)


def test_parts_in_any_order_give_the_same_store(make, whole):
    plan = plan_store(make("parts"))
    _, cuts = cut_shards(plan)
    assert len(cuts) > 41
    assert "shards 30 to 39 are built, 10 of" in build_part(plan, Part(30, 40, False))
    before = {p: p.stat().st_mtime_ns for p in (plan.store / "shards").glob("*.json")}
    build_part(plan, Part(1, 2, True))  # the second half, of which some are finished
    assert all(path.stat().st_mtime_ns == ns for path, ns in before.items())
    with pytest.raises(DataError, match="no finished token store"):
        Store.open(plan.store)
    assert digests(prepare_store(make("parts")).dir) == whole  # builds the first half, and finishes
    assert "is finished" in build_part(plan, Part(0, 2, True))


def test_the_rendered_array_builds_the_store(make, tmp_path, corpus, whole, capsys):
    """The batch file as three tasks at once, one killed and submitted again, then outside."""
    store = tmp_path / "array" / "store"
    words = [f"data.path={corpus}", f"data.store={store}", "data.tokenizer=train:300"]
    words += ["data.shard_bytes=10000", "data.min_val_tokens=1", "data.workers=1"]
    words += ["--executor", "slurm", "--print", "--tasks", "3", "--partition", "cpu"]
    capsys.readouterr()
    assert main(["prepare", *words]) == 0
    text = capsys.readouterr().out
    options = {line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")}
    assert options >= {"--ntasks=1", "--cpus-per-task=4", "--time=1-00:00:00", "--partition=cpu"}
    assert "--array=0-2" in text
    script = tmp_path / "prepare.sbatch"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0

    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "wikillm").write_text(f'#!/bin/sh\nexec {sys.executable} -m wikillm "$@"\n')
    (tools / "wikillm").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}

    def start(**variables: str) -> subprocess.Popen:
        env = {**environment, **variables}
        return subprocess.Popen(["bash", str(script)], env=env, stdout=subprocess.PIPE, text=True)

    def task(number: int) -> subprocess.Popen:
        ids = {"SLURM_ARRAY_TASK_ID": str(number + 5), "SLURM_ARRAY_TASK_MIN": "5"}
        return start(**ids, SLURM_ARRAY_TASK_COUNT="3")

    tasks = [task(number) for number in range(3)]
    last_part = 2 * len(finished_shards(tmp_path / "whole" / "store")) // 3

    def has_begun_last_part() -> bool:
        return any(int(path.stem) >= last_part for path in (store / "shards").glob("*.json"))

    while tasks[2].poll() is None and not has_begun_last_part():
        time.sleep(0.005)
    tasks[2].send_signal(signal.SIGKILL)
    tasks[2].communicate()
    again = task(2)
    for one in (tasks[0], tasks[1], again):
        assert "are built" in one.communicate(timeout=120)[0]
        assert one.returncode == 0
    last = start()
    assert "kept" in last.communicate(timeout=120)[0]
    assert digests(store) == whole


def test_a_build_keeps_the_staged_files_of_running_parts(make):
    plan = plan_store(make("busy"))
    cut_shards(plan)
    theirs = plan.store / "train" / f".00003.tok.77{STAGING_SUFFIX}"
    theirs.write_bytes(b"half")
    with FileLock(plan.parts_lock, is_shared=True):
        cut_shards(plan)
        assert theirs.exists()
    cut_shards(plan)
    assert not theirs.exists()  # its process is gone


def test_a_text_limit_and_a_changed_source_are_refused_in_parts(make, corpus, capsys):
    with pytest.raises(ConfigError, match="cannot be built in parts"):
        build_part(plan_store(make("limited", max_text_bytes=10_000)), Part(0, 1, False))
    plan = plan_store(make("changed"))
    cut_shards(plan)
    with open(corpus / "a.jsonl", "r+b") as file:
        file.seek(5000)
        file.write(b"\n" * 40_000)
    with pytest.raises(DataError, match="changed while"):
        build_part(plan, Part(0, 3, False))
    assert main(["prepare", "--executor", "slurm"]) == 2
    assert "add --print" in capsys.readouterr().err
    assert main(["prepare", "--executor", "slurm", "--shards", "0:1"]) == 2
    assert main(["prepare", "--print"]) == 2
    assert main(["prepare", "--executor", "slurm", "--print", "--tasks", "0"]) == 2


def test_a_part_continues_with_tokenizers_when_an_encoder_differs(make, wrong_encoder):
    whole = digests(prepare_store(make("whole", backend="hf")).dir)
    wrong_encoder("第0-900篇")
    cfg = make("refused", backend="fastokens")
    build_part(plan_store(cfg), Part(0, 1, True))
    found = finished_shards(plan_store(cfg).store)
    assert {info.backend.partition(" ")[0] for info in found.values()} == {"tokenizers"}
    store = prepare_store(cfg)
    tokens = {name: digest for name, digest in whole.items() if name.endswith((".tok", ".idx"))}
    assert tokens.items() <= digests(store.dir).items()
