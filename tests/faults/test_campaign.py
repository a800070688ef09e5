"""The campaign itself, which `make faults` runs, with more trials than fit into every commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from faults import interpose


@pytest.mark.deep
@pytest.mark.parametrize(
    ("faults", "trials", "more"),
    [
        ("kill", 60, ()),
        ("calls", 10_000, ("--setup", "wikillm/2xzero2/adamw")),
        ("power,resuming,disk,ranks,stages", 8, ()),
        ("corrupt,corrupt-all,store,signal,nan,pause,drift,loaders,two-runs", 8, ()),
    ],
)
def test_a_campaign(
    faults: str, trials: int, more: tuple[str, ...], tmp_path: Path, repo: Path
) -> None:
    if "calls" in faults and not interpose.has_compiler():
        pytest.skip("needs a C compiler")
    found = tmp_path / "faults.json"
    command = [sys.executable, "-m", "tests.faults.campaign", "--faults", faults]
    command += ["--trials", str(trials), "--to", str(found), *more]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    trials_done = json.loads(found.read_text())["trials"]
    assert trials_done and not [trial for trial in trials_done if trial["problems"]]
