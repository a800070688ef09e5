"""Rendered batch files on a real two-node Slurm: a signal, a time limit, a stop, and a build.

Takes five minutes. Runs with `make multinode` (WIKILLM_MULTINODE=1), as root, and needs Debian's
slurm-wlm and munge.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.netns import cluster, missing
from harness.programs import train_with_options
from harness.ranks import run_ranks
from harness.slurm import Slurm, lacking, slurm
from harness.tiny_run import Words

from wikillm.observe.sinks import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("WIKILLM_MULTINODE"), reason="part of `make multinode`"),
    pytest.mark.skipif(missing() is not None, reason=f"needs network namespaces: {missing()}"),
    pytest.mark.skipif(lacking() is not None, reason=f"needs Slurm: {lacking()}"),
]
CONSTANT = "train.lr_scheduler_type=constant_with_warmup"
QUIET = ("train.eval_steps=null", "train.max_eval_tokens=500", CONSTANT)
ENVIRON = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "SWANLAB_MODE": "disabled",
    "PYTHONPATH": "",
}
STEPS = 400
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
CLOSE = 2e-5


class Place:
    """A checkout that both nodes share, and the jobs submitted from it."""

    def __init__(self, repo: Path, folder: Path, scheduler: Slurm) -> None:
        self.slurm = scheduler
        self.workdir = folder / "co"
        self.run = folder / "run"
        self.workdir.mkdir()
        for name in ("train.py", "wikillm", "ds_configs", "pyproject.toml"):
            (self.workdir / name).symlink_to(repo / name)
        (self.workdir / ".venv").symlink_to(sys.prefix)

    def wikillm(self, *words: str) -> str:
        return self.slurm.run(sys.executable, "-m", "wikillm", *words, cwd=self.workdir, **ENVIRON)

    def launch(self, line: list[str], *, minutes: int) -> str:
        """Submit a job with one rank on each of two nodes, and return its number."""
        where = [
            "--nodes",
            "2",
            "--gpus",
            "1",
            "--cpus",
            "1",
            "--hours",
            str(minutes / 60),
            "--deepspeed",
            "zero2",
        ]
        said = self.wikillm("launch", "slurm", *where, "--go", *line)
        return next(
            line.split()[-1] for line in said.splitlines() if line.startswith("Submitted batch job")
        )

    def submit(self, *options: str) -> str:
        return self.slurm.run("sbatch", "--parsable", *options, cwd=self.workdir).strip()

    def step(self) -> int:
        metrics = self.run / "metrics.jsonl"
        return (
            max((record["step"] for record in read_metrics(metrics)), default=0)
            if metrics.exists()
            else 0
        )

    def wait_for_step(self, step: int, timeout: float = 240.0) -> None:
        deadline = time.monotonic() + timeout
        while self.step() < step:
            assert time.monotonic() < deadline, f"no step {step}: {self.said()}"
            time.sleep(0.2)

    def wait_for_requeue(self, number: str) -> None:
        """Wait until Slurm has requeued the job, then remove its two-minute start delay."""
        deadline = time.monotonic() + 480
        while (job := self.slurm.job(number))["Restarts"] == "0":
            assert time.monotonic() < deadline and job["JobState"] not in ENDED, (
                f"{job}: {self.said()}"
            )
            time.sleep(0.5)
        # Slurm applies a start in the second of the requeue to the job that it has just revoked.
        time.sleep(3)
        self.slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def exit(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "exit.json").read_text()))

    def said(self) -> str:
        logs = sorted(self.workdir.glob("*.log"))
        return (
            "\n".join(f"{log.name}: {log.read_text(errors='replace')[-3000:]}" for log in logs)
            + self.slurm.logs()
        )


@pytest.fixture
def place(repo: Path, tmp_path: Path) -> Iterator[Place]:
    with (
        cluster(tmp_path / "nodes", "node1", "node2") as nodes,
        slurm(nodes, tmp_path / "slurm") as scheduler,
    ):
        yield Place(repo, tmp_path, scheduler)


def test_a_signalled_run_is_queued_again_and_ends_with_the_losses_of_one_host(
    place: Place, words: Words, tmp_path: Path
) -> None:
    """USR1 arrives mid-run, as before a time limit. All losses match an uninterrupted run."""
    few = (*QUIET, "train.save_steps=1000000", f"train.max_steps={STEPS}")
    number = place.launch(words(place.run, *few), minutes=20)
    place.wait_for_step(20)
    place.slurm.run("scancel", "--signal=USR1", number)
    place.wait_for_requeue(number)
    assert 20 <= (stopped := place.step()) < STEPS
    assert place.exit()["code"] == 75
    job = place.slurm.wait(number, *ENDED)
    assert (job["JobState"], job["Restarts"], job["NumNodes"]) == ("COMPLETED", "1", "2"), (
        place.said()
    )
    losses = {
        record["step"]: record["loss"] for record in read_metrics(place.run / "metrics.jsonl")
    }
    alone = run_ranks(train_with_options, 2, words(tmp_path / "one", *few), {"deepspeed": "zero2"})[
        0
    ]
    assert alone["code"] == 0, alone["message"]
    assert losses.keys() == set(range(1, STEPS + 1))
    assert max(abs(losses[step] / loss - 1) for step, loss in alone["losses"].items()) < CLOSE, (
        f"{stopped=}"
    )


def test_the_time_limit_saves_and_a_stop_leaves_the_queue(place: Place, words: Words) -> None:
    """Slurm's signal precedes the six-minute limit. After `wikillm stop` nothing is queued."""
    for_ever = (*QUIET, "train.save_steps=1000000", "train.max_steps=1000000")
    number = place.launch(words(place.run, *for_ever), minutes=6)
    place.wait_for_requeue(number)
    stopped = place.step()
    assert place.exit()["code"] == 75 and stopped > 0, place.said()
    place.wait_for_step(stopped + 20)
    place.wikillm("stop", str(place.run))
    job = place.slurm.wait(number, *ENDED, "PENDING")
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "1", "75:0"), (
        place.said()
    )
    assert not list(place.workdir.glob(".stopped-*"))


def test_a_failed_job_is_queued_again_and_goes_on(place: Place, words: Words) -> None:
    """A rank is killed: the others end with 3, and the job resumes from its last checkpoint."""
    for_ever = (*QUIET, "train.save_steps=10", "train.max_steps=1000000")
    number = place.launch(words(place.run, *for_ever), minutes=20)
    place.wait_for_step(15)
    record = json.loads((place.run / "ranks" / "rank_1.json").read_text())
    os.kill(record["process"]["pid"], signal.SIGKILL)
    place.wait_for_requeue(number)
    failed = place.step()
    assert place.exit()["code"] == 3 and "was killed by signal 9" in place.exit()["reason"]
    place.wait_for_step(failed + 20)
    place.wikillm("stop", str(place.run))
    job = place.slurm.wait(number, *ENDED, "PENDING")
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "1", "75:0"), (
        place.said()
    )


def test_an_array_builds_the_bytes_of_a_local_build(
    place: Place, words: Words, corpus: Path
) -> None:
    """`wikillm prepare --executor slurm`: array tasks build all shards, the last job none."""
    text = place.workdir / "corpus.jsonl"
    # A shard has at least 1 MiB.
    text.write_bytes(corpus.read_bytes() * (5_000_000 // corpus.stat().st_size))
    data = [word for word in words(place.run) if re.match(r"data\.(?!store=|path=)", word)]
    data += [f"data.path={text}", "train.sequence_length=32"]
    here = place.workdir / "here"
    array = place.workdir / "array"
    place.wikillm("prepare", *data, f"data.store={here}")
    script = place.workdir / "wikillm-prepare.sbatch"
    options = ("--executor", "slurm", "--print", "--tasks", "3", "--cpus", "1")
    script.write_text(place.wikillm("prepare", *options, *data, f"data.store={array}"))
    parts = place.submit("--array=0-2", script.name)
    deadline = time.monotonic() + 120
    while place.slurm.run("squeue", "--noheader", f"--jobs={parts}").strip():
        assert time.monotonic() < deadline, place.said()
        time.sleep(0.2)
    shards = len(list((here / "shards").iterdir()))
    assert (
        len(list((array / "shards").iterdir())) == shards > 3
        and not (array / "manifest.json").exists()
    ), place.said()
    job = place.slurm.wait(place.submit(f"--dependency=afterok:{parts}", script.name), *ENDED)
    assert job["JobState"] == "COMPLETED", place.said()
    built = [
        {
            str(file.relative_to(store)): file.read_bytes()
            for split in ("train", "val")
            for file in (store / split).iterdir()
        }
        for store in (here, array)
    ]
    assert built[0] == built[1] and len(built[0]) == 4 * shards
