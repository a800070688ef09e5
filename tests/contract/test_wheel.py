"""The wheel holds presets, DeepSpeed JSON and the licence; wheel and sdist build reproducibly."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel built from this checkout, without network and without build isolation."""
    target = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_what_is_inside(repo: Path, wheel: list[str]) -> None:
    wanted = [
        path.relative_to(repo).as_posix()
        for pattern in ("presets/*/*.yaml", "*/templates/*", "**/*.py", "config/*.yaml")
        for path in (repo / "wikillm").glob(pattern)
    ]
    wanted += [f"wikillm/ds_configs/{path.name}" for path in (repo / "ds_configs").glob("*.json")]
    assert len(wanted) > 400
    assert not set(wanted) - set(wheel)
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert all(name.startswith("wikillm") for name in wheel)
    assert not any("/tests/" in name or "__pycache__" in name for name in wheel)


@pytest.mark.deep
def test_two_builds_are_the_same_bytes(repo: Path, tmp_path: Path) -> None:
    """Two copies with different file times: neither machine nor time is in the files."""
    digests = []
    for number in (1, 2):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(repo, copy, ignore=shutil.ignore_patterns(".venv", ".*_cache", "runs"))
        for path in copy.rglob("*.md"):
            os.utime(path, (1e9 + number, 1e9 + number))
        command = [sys.executable, "-m", "hatchling", "build", "-d", "dist"]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        files = sorted((copy / "dist").iterdir())
        assert [path.suffix for path in files] == [".whl", ".gz"]
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]
