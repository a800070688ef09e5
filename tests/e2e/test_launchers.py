"""`deepspeed` is killed while two ranks train, then `torchrun` resumes with one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.ports import take_port
from harness.tiny_run import Words

from wikillm.checkpoints.latest import latest_complete
from wikillm.observe.sinks import read_metrics

BIN = Path(sys.executable).parent
STEPS = 4000  # enough for the run to last until the signal


def start(launcher: list[str], words: list[str], repo: Path, log: Path) -> subprocess.Popen[bytes]:
    environ = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    environ["PATH"] = f"{BIN}{os.pathsep}{environ['PATH']}"
    command = [
        sys.executable,
        str(BIN / launcher[0]),
        *launcher[1:],
        str(repo / "train.py"),
        "--deepspeed",
        "zero2",
    ]
    with open(log, "wb") as output:
        return subprocess.Popen(
            [*command, *words],
            env=environ,
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        reached = [record["step"] for record in read_metrics(run_dir / "metrics.jsonl")]
        if reached and reached[-1] >= step:
            return
        assert process.poll() is None, f"the launcher ended early:\n{log.read_text()[-3000:]}"
        time.sleep(0.2)
    pytest.fail(f"step {step} was not reached:\n{log.read_text()[-3000:]}")


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2.0)  # for the last barrier and the lock on the run directory


def test_deepspeed_killed_then_torchrun_goes_on(words: Words, repo: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    log = tmp_path / "deepspeed.log"
    line = words(
        run_dir, f"train.max_steps={STEPS}", "train.save_steps=100000", "train.eval_steps=null"
    )
    process = start(
        ["deepspeed", "--num_gpus", "2", "--master_port", str(take_port())], line, repo, log
    )
    try:
        wait_for_step(run_dir, 3, process, log)
        os.kill(process.pid, signal.SIGKILL)  # only the launcher, not its ranks
        process.wait()
        wait_for_file(run_dir / "exit.json")  # the ranks notice, save and exit
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    ended = json.loads((run_dir / "exit.json").read_text())
    assert ended["code"] == 75 and "the end of its launcher (deepspeed, pid " in ended["reason"], (
        log.read_text()[-3000:]
    )
    checkpoint = latest_complete(run_dir / "checkpoints")
    assert checkpoint is not None and checkpoint.name == f"checkpoint-{ended['step']}"

    stopped_at = ended["step"]
    log = tmp_path / "torchrun.log"
    more = words(
        run_dir,
        f"train.max_steps={stopped_at + 4}",
        "train.save_steps=100000",
        "train.eval_steps=null",
    )
    launcher = ["torchrun", "--nproc_per_node", "1", "--master_port", str(take_port())]
    process = start(launcher, [*more, "--resume", "auto", "--allow-change"], repo, log)
    assert process.wait(timeout=240) == 0, log.read_text()[-3000:]
    assert json.loads((run_dir / "exit.json").read_text())["code"] == 0
    steps = [record["step"] for record in read_metrics(run_dir / "metrics.jsonl")]
    assert steps == list(range(1, stopped_at + 5)), "no step is lost and none is reported twice"
