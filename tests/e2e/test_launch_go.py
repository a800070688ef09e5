"""`wikillm launch multi --go`: two processes on this machine through the real `deepspeed` launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.tiny_run import Words

from wikillm.observe.sinks import read_metrics


@pytest.mark.slow
def test_two_processes_train(words: Words, repo: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    line = words(run_dir, "train.max_steps=3", "train.save_steps=100", "train.eval_steps=null")
    done = subprocess.run(
        [sys.executable, "-m", "wikillm", "launch", "multi", "--gpus", "2", "--deepspeed", "zero2", "--go", *line],
        cwd=repo,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [record["step"] for record in read_metrics(run_dir / "metrics.jsonl")] == [1, 2, 3]
    exit_record = json.loads((run_dir / "exit.json").read_text())
    assert exit_record["code"] == 0
    assert len(list((run_dir / "logs").glob("rank_*.log"))) == 2
