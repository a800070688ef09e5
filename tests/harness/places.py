"""What a test of several nodes shares: a checkout, a hostfile, a run directory and its log."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness.netns import Cluster
from harness.tiny_run import Words
from wikillm.observe.sinks import read_metrics

L2 = 2e-5
QUIET = ("train.save_steps=1000000", "train.eval_steps=null", "train.max_eval_tokens=500")
ENVIRON = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "SWANLAB_MODE": "disabled",
    "PYTHONPATH": "",
}


class SharedPlace:
    """A checkout that all nodes share, a hostfile, and the run directory of one test."""

    def __init__(self, repo: Path, folder: Path, words: Words) -> None:
        self.folder = folder
        self.workdir = folder / "co"
        self.run = folder / "run"
        self.log = folder / "log"
        self.workdir.mkdir()
        for name in ("train.py", "wikillm", "ds_configs", "pyproject.toml"):
            (self.workdir / name).symlink_to(repo / name)
        (self.workdir / ".venv").symlink_to(sys.prefix)
        self.hostfile = folder / "hosts"
        self.hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
        self.words = words

    def line(self, *more: str) -> list[str]:
        return self.words(self.run, *QUIET, *more)

    def wikillm(self, nodes: Cluster, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "wikillm", *argv]
        return nodes.run(name, words, cwd=self.workdir, **ENVIRON)

    def wait_for_steps(
        self, process: subprocess.Popen[bytes], steps: int, timeout: float = 180.0
    ) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and process.poll() is None:
            if (self.run / "metrics.jsonl").exists() and len(
                read_metrics(self.run / "metrics.jsonl")
            ) >= steps:
                return
            time.sleep(0.2)
        raise AssertionError(f"no step {steps}: {self.tail()}")

    def losses(self) -> dict[int, float]:
        return {
            record["step"]: record["loss"] for record in read_metrics(self.run / "metrics.jsonl")
        }

    def record(self, rank: int) -> dict[str, Any]:
        return dict(json.loads((self.run / "ranks" / f"rank_{rank}.json").read_text()))

    def exit(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "exit.json").read_text()))

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-5000:]


def close_to(losses: dict[int, float], expected: dict[int, float]) -> bool:
    return all(abs(losses[step] - loss) <= L2 * abs(loss) for step, loss in expected.items())


def ends(process: subprocess.Popen[bytes], place: SharedPlace, within: float = 180.0) -> float:
    """Wait until the launcher has ended. Return the seconds it took; fail after `within`."""
    began = time.monotonic()
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still there after {within:.0f} s: {place.tail()}") from None
    took = time.monotonic() - began
    print(f"ended {took:.1f} s later with code {process.returncode}")
    return took
