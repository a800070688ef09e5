"""Check exports in a fork of the warm server. A new interpreter takes 6 s of CPU time to start."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.ranks import RankFailed, run_ranks


def run_warm(
    command: list[str], *, env: Mapping[str, str], **_: Any
) -> subprocess.CompletedProcess[str]:
    """Replace `subprocess.run` of `python -P SCRIPT REQUEST ANSWER`. Runs sitecustomize.py too."""
    before = Path(env.get("PYTHONPATH", "").split(":")[0], "sitecustomize.py")
    scripts = [str(before)] * before.is_file() + [command[2]]
    try:
        run_ranks(_run, 1, scripts, command[3:])
    except RankFailed as failed:
        code = -signal.SIGKILL if "rank 0: died" in str(failed) else 1
        return subprocess.CompletedProcess(command, code, "", str(failed))
    return subprocess.CompletedProcess(command, 0, "", "")


def _run(scripts: list[str], words: list[str]) -> None:
    for script in scripts:
        sys.argv = [script, *words]
        runpy.run_path(script, run_name="__main__")
