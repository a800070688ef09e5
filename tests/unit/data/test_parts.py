"""A store built in parts, by several processes or by Ray, has the bytes of one that was built in one go."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import STAGING_SUFFIX
from wikillm.core.lock import FileLock
from wikillm.data.prepare.build import finished_shards
from wikillm.data.prepare.parts import Part, build_part, cut_shards
from wikillm.data.prepare.prepare import plan_store, prepare_store
from wikillm.data.store.store import Store


def digests(store: Path) -> dict[str, str]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture
def corpus(tmp_path, texts):
    """About 50 shards in two files, the first plain, the second compressed; a literal blank line here and there."""
    import gzip

    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in texts(2500)]
    (folder / "a.jsonl").write_text("\n\n".join(lines[:1500]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[1500:]).encode()))
    return folder


@pytest.fixture
def make(corpus, settings, tmp_path):
    def make(name: str, **values):
        return settings(
            corpus,
            store=str(tmp_path / name / "store"),
            tokenizer="train:300",
            shard_bytes=20_000,
            **values,
        )

    return make


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
def test_parts_are_numbers_of_shards(text, numbers):
    assert list(Part.parse(text).of(10)) == numbers
    if "/" in text:
        every = [n for i in range(7) for n in Part.parse(f"{i}/7").of(10)]
        assert every == list(range(10))


@pytest.mark.parametrize("text", ["3", "3:3", "4:2", "8/8", "-1:2", "a:b", "1:2:3", ""])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(ConfigError, match="wants A:B"):
        Part.parse(text)


def test_parts_in_any_order_give_the_same_store(make, capsys):
    whole = digests(prepare_store(make("whole")).dir)
    plan = plan_store(make("parts"))
    ready = cut_shards(plan)
    assert ready is not None and ready.shards > 40
    assert "shards 30 to 39 are built, 10 of" in build_part(plan, Part(30, 40, False))
    before = {p: p.stat().st_mtime_ns for p in (plan.store / "shards").glob("*.json")}
    build_part(plan, Part(1, 2, True))  # the second half, of which some stand
    assert all(path.stat().st_mtime_ns == ns for path, ns in before.items())
    with pytest.raises(DataError, match="no finished token store"):
        Store.open(plan.store)
    assert digests(prepare_store(make("parts")).dir) == whole  # builds the first half, and finishes
    assert "is finished" in build_part(plan, Part(0, 2, True))


def test_the_rendered_array_builds_the_store(make, tmp_path, corpus, capsys):
    """The text of the batch file, run as three tasks at once, one of them killed and given again, then once outside."""
    whole = digests(prepare_store(make("whole")).dir)
    words = [
        f"data.path={corpus}",
        f"data.store={tmp_path / 'array' / 'store'}",
        "data.tokenizer=train:300",
    ]
    words += ["data.shard_bytes=20000", "data.min_val_tokens=1", "data.workers=1"]
    capsys.readouterr()
    assert (
        main(
            [
                "prepare",
                *words,
                "--executor",
                "slurm",
                "--print",
                "--tasks",
                "3",
                "--partition",
                "cpu",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    options = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--ntasks=1", "--cpus-per-task=4", "--time=1-00:00:00", "--partition=cpu"} <= set(
        options
    )
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
        return subprocess.Popen(
            ["bash", str(script)],
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            text=True,
        )

    def task(number: int) -> subprocess.Popen:
        ids = {
            "SLURM_ARRAY_TASK_ID": str(number + 5),
            "SLURM_ARRAY_TASK_MIN": "5",
            "SLURM_ARRAY_TASK_COUNT": "3",
        }
        return start(**ids)

    tasks = [task(number) for number in range(3)]
    records = tmp_path / "array" / "store" / "shards"
    last_part = 2 * len(finished_shards(tmp_path / "whole" / "store")) // 3
    while tasks[2].poll() is None and not any(
        int(p.stem) >= last_part for p in records.glob("*.json")
    ):
        time.sleep(0.005)
    tasks[2].send_signal(signal.SIGKILL)
    tasks[2].communicate()
    again = task(2)
    for one in (tasks[0], tasks[1], again):
        assert "are built" in one.communicate(timeout=120)[0]
        assert one.returncode == 0
    last = start()
    assert "kept" in last.communicate(timeout=120)[0]
    assert digests(tmp_path / "array" / "store") == whole


def test_a_build_leaves_the_files_of_those_at_work(make):
    plan = plan_store(make("busy"))
    cut_shards(plan)
    theirs = plan.store / "train" / f".00003.tok.77{STAGING_SUFFIX}"
    theirs.write_bytes(b"half")
    with FileLock(plan.parts_lock, is_shared=True):
        cut_shards(plan)
        assert theirs.exists()
    cut_shards(plan)
    assert not theirs.exists()  # its process is gone


def test_what_parts_cannot_do_is_refused(make, corpus, capsys):
    with pytest.raises(ConfigError, match="shard by shard"):
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
    assert main(["prepare", "--executor", "ray", "--shards", "0:1"]) == 2
    assert main(["prepare", "--print"]) == 2
    assert main(["prepare", "--executor", "slurm", "--print", "--tasks", "0"]) == 2


def test_a_part_goes_on_with_tokenizers_when_an_encoder_differs(make, monkeypatch):
    pytest.importorskip("fastokens")
    from wikillm.data.tokenizer import encoders as tokenizer_backend

    whole = digests(prepare_store(make("whole", backend="hf")).dir)
    real = tokenizer_backend.OPENERS["fastokens"]

    class Wrong:
        def __init__(self, folder):
            self.inner = real(folder)

        def encode_batch(self, texts):
            return [
                ids[:-1] if "第0-900篇" in text else ids
                for text, ids in zip(texts, self.inner.encode_batch(texts), strict=True)
            ]

    monkeypatch.setitem(tokenizer_backend.OPENERS, "fastokens", Wrong)
    monkeypatch.setattr(tokenizer_backend, "ONE_IN", 1)
    tokenizer_backend._opened.cache_clear()
    cfg = make("refused", backend="fastokens")
    build_part(plan_store(cfg), Part(0, 1, True))
    found = finished_shards(plan_store(cfg).store)
    assert {info.backend.partition(" ")[0] for info in found.values()} == {"tokenizers"}
    store = prepare_store(cfg)
    tokens = {name: digest for name, digest in whole.items() if name.endswith((".tok", ".idx"))}
    assert tokens.items() <= digests(store.dir).items()
    tokenizer_backend._opened.cache_clear()


def ray_workers() -> list[int]:
    """Processes of Ray that build shards below this process."""
    found, parents = [], {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int(
                    folder.joinpath("stat").read_text().rpartition(")")[2].split()[1]
                )
                if folder.joinpath("cmdline").read_bytes().startswith(b"ray::build_in_task"):
                    found.append(int(folder.name))
            except OSError:
                continue

    def is_below(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in found if is_below(pid)]


def test_a_ray_cluster_gives_the_same_store_though_a_worker_is_killed(make, monkeypatch):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("the extra `ray` is not installed")
    from wikillm.data.prepare.ray_executor import build_on_ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    whole = digests(prepare_store(make("whole")).dir)
    plan = plan_store(make("ray", workers=2))
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            time.sleep(0.002)
            if len(list((plan.store / "shards").glob("*.json"))) >= 5 and (pids := ray_workers()):
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

    threading.Thread(target=kill_one, daemon=True).start()
    build_on_ray(plan)
    assert killed
    assert digests(plan.store) == whole
    assert not list(plan.store.rglob(f"*{STAGING_SUFFIX}"))


def test_ray_that_is_missing_or_not_there_is_named(make, monkeypatch):
    from wikillm.data.prepare import ray_executor

    class NoCluster:
        def init(self, **_):
            raise ConnectionError("nobody listens on 127.0.0.1:1")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(Exception, match="No Ray cluster") as caught:
        ray_executor._connect(NoCluster(), 1)
    assert "127.0.0.1:1" in caught.value.got
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs Ray") as caught:
        ray_executor.build_on_ray(plan_store(make("none")))
    assert "wikillm[ray]" in caught.value.fix
