"""`wikillm launch multi --go` starts a run again whose rank was killed, and ends on request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from harness.alert_receivers import hook_server
from harness.ports import take_port
from harness.tiny_run import Words

from wikillm.ledger.audit import audit_run
from wikillm.observe.sinks import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.deep]
CONSTANT = "train.lr_scheduler_type=constant_with_warmup"


def launch(
    words: list[str], repo: Path, log: Path, *how: str, **more: str
) -> subprocess.Popen[bytes]:
    bin = Path(sys.executable).parent
    environ = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(repo),
        **more,
    }
    where = ["--gpus", "2", "--master-port", str(take_port()), "--go", "--deepspeed", "zero1"]
    where += how
    command = [sys.executable, "-m", "wikillm", "launch", "multi", *where, *words]
    with log.open("wb") as out:
        return subprocess.Popen(
            command, env=environ, cwd=repo, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if any(record["step"] >= step for record in read_metrics(run / "metrics.jsonl")):
            return
        time.sleep(0.1)
    pytest.fail(f"no step {step}:\n{log.read_text()[-4000:]}")


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(
    words: Words, repo: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    log = tmp_path / "log"
    long = ("train.max_steps=120", "train.save_steps=5", "train.eval_steps=null", CONSTANT)
    with hook_server() as hooks:
        line = words(run, *long, "alerts.webhook=HOOK")
        process = launch(line, repo, log, HOOK=f"{hooks.url}/hook")
        try:
            wait_for_step(run, 12, process, log)
            pid = json.loads((run / "ranks" / "rank_1.json").read_text())["process"]["pid"]
            os.kill(pid, signal.SIGKILL)
            assert process.wait(300) == 0, log.read_text()[-4000:]
        finally:
            process.kill()
        lost, ended = hooks.wait_for(2)
    assert (lost["event"], ended["event"]) == ("lost", "ended")
    assert lost["note"] == "The launcher starts it again, unless 3 restarts made no new checkpoint."
    said = log.read_text()
    assert "exit code 3: starting again from the last checkpoint in 5" in said, said[:3000]
    assert "(restart 1 of 3 without a new checkpoint)" in said and "resuming " in said
    assert json.loads((run / "exit.json").read_text())["step"] == 120
    steps = [record["step"] for record in read_metrics(run / "metrics.jsonl")]
    assert steps == list(range(1, 121))


def test_a_rank_that_is_gone_for_good_is_left_out(words: Words, repo: Path, tmp_path: Path) -> None:
    """Rank 1 is killed in every start that has one; a single rank trains the same to the end."""
    run = tmp_path / "run"
    log = tmp_path / "log"
    long = ("train.max_steps=60", "train.save_steps=5", "train.eval_steps=null", CONSTANT)
    process = launch(words(run, *long), repo, log, "--elastic")
    record = run / "ranks" / "rank_1.json"
    killed = set()
    try:
        wait_for_step(run, 12, process, log)
        while process.poll() is None:
            with suppress(OSError, ValueError):
                pid = json.loads(record.read_text())["process"]["pid"]
                if pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.1)
        assert process.wait(300) == 0, log.read_text()[-4000:]
    finally:
        process.kill()
    assert len(killed) == 2
    assert "rank 1 was lost twice in a row: going on with 1 of 2 ranks" in log.read_text()
    assert json.loads((run / "exit.json").read_text())["step"] == 60
    assert audit_run(run).is_proven


def test_a_signal_to_the_launcher_saves_and_ends_without_a_restart(
    words: Words, repo: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    log = tmp_path / "log"
    long = ("train.max_steps=100000", "train.save_steps=100000", "train.eval_steps=null", CONSTANT)
    process = launch(words(run, *long), repo, log)
    try:
        wait_for_step(run, 3, process, log)
        process.terminate()
        process.wait(120)
    finally:
        process.kill()
    said = json.loads((run / "exit.json").read_text())
    assert said["code"] == 75 and process.returncode == 75, log.read_text()[-3000:]
    assert "starting again" not in log.read_text()
