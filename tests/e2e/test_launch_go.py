"""`wikillm launch hostfile --go` through the real `deepspeed`: two nodes of one process each.

Both nodes are this machine. A stand-in for ssh runs each command in a shell with a minimal
environment, as sshd does. The test covers the arguments, the forwarded variables and
DeepSpeed's `--no_ssh`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.ports import take_port
from harness.stand_ins import StandIns
from harness.tiny_run import Words

from wikillm.observe.sinks import read_metrics


@pytest.mark.slow
@pytest.mark.deep  # test_multinode.py tests the same with real ssh
def test_two_nodes_train_as_one_world(words: Words, repo: Path, tmp_path: Path) -> None:
    tools = StandIns(tmp_path / "bin", "ssh")
    run_dir = tmp_path / "run"
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    # A separate workdir, because DeepSpeed writes .deepspeed_env there.
    workdir = tmp_path / "checkout"
    workdir.mkdir()
    for name in ("train.py", "wikillm", "ds_configs"):
        (workdir / name).symlink_to(repo / name)
    python = Path(sys.executable)
    environ = tools.environ(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", SWANLAB_MODE="disabled")
    environ["PATH"] = (
        f"{tmp_path / 'bin'}{os.pathsep}{python.parent}{os.pathsep}{os.environ['PATH']}"
    )
    line = words(run_dir, "train.max_steps=3", "train.save_steps=100", "train.eval_steps=null")
    where = [
        "--hostfile",
        str(tmp_path / "hosts"),
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(take_port()),
    ]
    done = subprocess.run(
        [
            str(python),
            "-m",
            "wikillm",
            "launch",
            "hostfile",
            *where,
            "--deepspeed",
            "zero2",
            "--go",
            *line,
        ],
        cwd=workdir,
        env=environ,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [record["step"] for record in read_metrics(run_dir / "metrics.jsonl")] == [1, 2, 3]
    assert json.loads((run_dir / "exit.json").read_text())["code"] == 0
    assert len(list((run_dir / "logs").glob("rank_*.log"))) == 2
    environment_file = workdir / ".deepspeed_env"
    assert environment_file.stat().st_mode & 0o777 == 0o600
    assert "DS_ACCELERATOR=cpu" in environment_file.read_text().splitlines()
