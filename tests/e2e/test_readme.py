"""Run code blocks marked `<!-- run -->` verbatim, in order, in a copy of the checkout.

The copy contains what a git clone would, plus uncommitted changes. The installed environment
replaces the result of `make env`. `<!-- run 300 -->` sets another time limit in seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.checkout import files_of

RUN_MARK = re.compile(r"<!-- run(?: (\d+))? -->\s*\n```(?:sh|bash)\n(.*?)\n```", re.DOTALL)
DEFAULT_LIMIT = 420  # seconds for one block


def blocks(page: str = "README.md") -> list[tuple[int, str]]:
    text = (Path(__file__).resolve().parents[2] / page).read_text(encoding="utf-8")
    found = RUN_MARK.findall(text)
    return [(int(limit or DEFAULT_LIMIT), body) for limit, body in found if "make test" not in body]


@pytest.fixture(scope="module")
def copy(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("readme") / "wikillm"
    for name in files_of(repo):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repo / name, target / name)
    (target / ".venv").mkdir()
    (target / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    # `make env` compares this stamp first, and does nothing when it matches.
    stamp = (
        "eval \"$(grep -E '^(venv|want)=' launch/bootstrap.sh)\"; "
        'echo "$want demo,dev" >.venv/installed'
    )
    subprocess.run(["sh", "-euc", stamp], cwd=target, check=True)
    return target


@pytest.fixture
def shell(copy: Path) -> dict[str, str]:
    """A reader's shell in the copy: the environment is on PATH, without variables from `make`."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    return environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(copy),  # import the copy's code, not that of the checkout
    }


def test_the_copy_takes_the_environment_as_it_is(copy: Path, shell: dict[str, str]) -> None:
    done = subprocess.run(
        ["make", "env"], cwd=copy, env=shell, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), (
        "it began to build another one"
    )


def test_the_pages_have_blocks_to_run() -> None:
    assert len(blocks()) >= 2
    assert len(blocks("docs/guide/quickstart.md")) >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["README.md", pytest.param("docs/guide/quickstart.md", marks=pytest.mark.deep)]
)
def test_blocks_run_as_they_stand(page: str, copy: Path, shell: dict[str, str]) -> None:
    """All blocks run in one folder, because later blocks may use the results of earlier ones."""
    for made in ("runs", "exports", "stores"):  # by the other page
        shutil.rmtree(copy / made, ignore_errors=True)
    for limit, body in blocks(page):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", body],
            cwd=copy,
            env=shell,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
        )
        story = f"$ {body}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == 0, story
