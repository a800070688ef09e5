"""The scripts in launch/ are what the command in their comment renders."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = {
    "single_gpu.sh": "wikillm launch single --deepspeed zero2 --print",
    "multi_gpu.sh": "wikillm launch multi --deepspeed zero2 --print",
    "multi_node.sh": "wikillm launch hostfile --hostfile launch/hostfile --workdir /srv/wikillm "
    "--config pretrain-7b --deepspeed zero2 data.path=corpus --print",
    "slurm.sbatch": "wikillm launch slurm --nodes 2 --gpus 8 --config pretrain-7b "
    "--deepspeed zero2 data.path=corpus --print",
}
MAX_LINES = 40


@pytest.mark.parametrize("name", GOLDEN)
def test_a_file_is_the_rendering_of_the_command_it_names(name: str, repo: Path) -> None:
    text = (repo / "launch" / name).read_text(encoding="utf-8")
    comment = re.search(r"^# Written by: (.*)$", text, re.MULTILINE)
    assert comment and comment[1] == GOLDEN[name]
    words = shlex.split(comment[1])[1:]
    done = subprocess.run(
        [sys.executable, "-m", "wikillm", *words],
        cwd=repo,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == text, f"write the output of `{comment[1]}` to launch/{name}"
    assert text.count("\n") <= MAX_LINES


def test_every_script_is_compared(repo: Path) -> None:
    there = {path.name for path in (repo / "launch").iterdir()} - {"bootstrap.sh", "hostfile"}
    assert there == set(GOLDEN)


def test_launching_imports_no_torch(repo: Path) -> None:
    probe = (
        "import sys\nfrom wikillm.cli.main import main\n"
        "code = main(['launch', 'multi', '--print'])\n"
        "found = {'torch', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit('torch was imported' if found else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=repo, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
