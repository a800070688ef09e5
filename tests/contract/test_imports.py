"""Rooms import downwards only, some never import torch, and a breach is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).parent / "lint-imports"
    return subprocess.run(
        [str(script), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_rooms_keep_their_layers(repo: Path) -> None:
    done = lint_imports(repo)
    assert done.returncode == 0 and ", 0 broken." in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/types.py", "import wikillm.train.run"),
        ("plan/params.py", "def late():\n    import torch"),
        ("attic/__init__.py", ""),
    ],
    ids=["upwards", "torch inside a function", "a room nobody declared"],
)
def test_a_breach_is_noticed(repo: Path, tmp_path: Path, file: str, line: str) -> None:
    shutil.copytree(
        repo / "wikillm", tmp_path / "wikillm", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(repo / "pyproject.toml", tmp_path)
    target = tmp_path / "wikillm" / file
    target.parent.mkdir(exist_ok=True)
    with open(target, "a", encoding="utf-8") as opened:
        opened.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1 and "BROKEN" in done.stdout, (
        f"it passed unseen:\n{done.stdout}{done.stderr}"
    )
