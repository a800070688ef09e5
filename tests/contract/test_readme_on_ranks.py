"""Training commands of the READMEs and the guide on 1 to 64 ranks.

Each command goes through `wikillm launch ... --print`, which checks configuration, DeepSpeed JSON
and batch, and starts nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.pages import commands

from wikillm.cli.main import main

RANKS = (1, 2, 8, 16, 64)
REPO = Path(__file__).resolve().parents[2]
GUIDE = sorted((REPO / "docs" / "guide").glob("*.md"))
PAGES = [REPO / "README.md", *(page for page in GUIDE if not page.name.endswith(".zh.md"))]
"""A test holds that the Chinese twins have the same commands."""
STARTS = re.compile(r"(deepspeed|torchrun|mpirun|wikillm (train|launch|plan)|python train\.py) ")
PLACEHOLDERS = re.compile(r"=(FOLDER|FILE|HOST|NAME)\b|init_from=weights")
MACHINES = re.compile(
    r"--(hostfile|host|image|storage|gpus?|nodes|hours) \S+|--(go|print|dry-run)\b"
)
A_SEQUENCE = {"long-1.7b-32k": 2, "long-7b-128k": 4}  # GPUs that share one


def shown() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of each command that trains or plans, without placeholders."""
    for page in PAGES:
        for line in commands(page.read_text(encoding="utf-8")):
            if "TARGET" not in line and STARTS.match(line):
                words = shlex.split(re.sub(r" > \S+", " ", line))
                yield page.name, [word for word in words if not PLACEHOLDERS.search(word)]


def trainings() -> list[tuple[str, tuple[str, ...]]]:
    """The words after `train.py`, `wikillm train` or `wikillm launch TARGET`, machines excepted."""
    found = {}
    for page, words in shown():
        joined = " ".join(words)
        if "launch swanlab" in joined or words[:2] == ["wikillm", "plan"]:
            continue
        cut = re.split(r"train\.py|wikillm train|wikillm launch \w+", joined, maxsplit=1)
        rest = re.sub(MACHINES, "", cut[1])
        found[shlex.join(shlex.split(rest))] = page
    return [(page, tuple(shlex.split(rest))) for rest, page in found.items()]


def test_there_is_something_to_try() -> None:
    assert len(trainings()) >= 8
    pages = {page for page, _ in shown()}
    assert pages >= {"README.md", "launch.md", "training.md"}


@pytest.mark.parametrize(
    ("page", "words"), trainings(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_command_of_the_pages_is_accepted_for_any_number_of_ranks(
    page: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = words[words.index("--config") + 1] if "--config" in words else "wiki-zh-120m"
    run = "demo" if "--size" in words else run  # of that size, with as small a batch
    for ranks in RANKS:
        if run == "demo" and ranks > 8 or ranks < A_SEQUENCE.get(run, 1):
            continue  # refused below
        assert main(["launch", "multi", "--gpus", str(ranks), "--print", *words]) == 0, (
            capsys.readouterr().err
        )
        assert f"--num_gpus {ranks}" in capsys.readouterr().out
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=8\nnode2 slots=8\n")
    if run != "demo":
        assert main(["launch", "hostfile", "--hostfile", str(hosts), "--print", *words]) == 0, (
            capsys.readouterr().err
        )


def test_the_plans_of_the_pages_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    tried = 0
    for _, words in shown():
        measures = {"--calibrate", "--report", "--all", "cpu"} & set(words)
        if words[:2] == ["wikillm", "plan"] and not measures:
            assert main(words[1:]) == 0, capsys.readouterr().err
            tried += 1
    assert tried >= 4
