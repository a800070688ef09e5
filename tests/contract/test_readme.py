"""The tree of ARCHITECTURE.md is complete; both READMEs have the same sections and commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness.checkout import files_of
from harness.pages import commands

REPO = Path(__file__).resolve().parents[2]
TREE_MARK = "<!-- tree -->"  # on the line before the fenced block
MAX_LINES = 150
TWINS = ("README.md", "README.zh-CN.md")


def fenced_block_after(text: str, mark: str) -> str:
    match = re.search(re.escape(mark) + r"\s*\n```[a-z]*\n(.*?)\n```", text, re.DOTALL)
    assert match, f"there is no fenced block after {mark}"
    return match[1]


def paths_in_tree(block: str) -> list[str]:
    """Paths of a tree: `name` or `name/` first on a line, indented by two spaces per level."""
    stack: list[str] = []
    paths = []
    for line in block.splitlines():
        match = re.match(r"( *)([\w.\-]+/?)(?:\s|$)", line)
        if match is None:
            continue
        depth = len(match[1]) // 2
        assert depth <= len(stack), f"indented too far: {line!r}"
        stack = [*stack[:depth], match[2].rstrip("/")]
        paths.append("/".join(stack) + ("/" if match[2].endswith("/") else ""))
    return paths


def folders(repo: Path) -> set[str]:
    """Top-level folders and rooms of wikillm/ that git knows, hidden ones excepted."""
    found = set()
    for name in files_of(repo):
        parts = name.split("/")
        if parts[0].startswith("."):
            continue
        found |= {f"{parts[0]}/"} if len(parts) > 1 else set()
        found |= {f"wikillm/{parts[1]}/"} if parts[0] == "wikillm" and len(parts) > 2 else set()
    return found


def headings(text: str) -> list[int]:
    """Levels of the headings, in order; code blocks do not count."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [len(match) for match in re.findall(r"^(#{1,4}) \S", prose, flags=re.MULTILINE)]


def test_the_tree_is_the_tree(repo: Path) -> None:
    text = (repo / "ARCHITECTURE.md").read_text(encoding="utf-8")
    shown = paths_in_tree(fenced_block_after(text, TREE_MARK))
    assert len(shown) > 15
    gone = [
        path
        for path in shown
        if not (repo / path).exists() or path.endswith("/") != (repo / path).is_dir()
    ]
    assert not gone, f"shown but not there (a folder ends with /): {gone}"
    assert not folders(repo) - set(shown), (
        f"there but not shown: {sorted(folders(repo) - set(shown))}"
    )


def test_the_twins_have_the_same_sections(repo: Path) -> None:
    english, chinese = (headings((repo / name).read_text(encoding="utf-8")) for name in TWINS)
    assert len(english) >= 6
    assert english == chinese


def test_the_twins_have_the_same_code(repo: Path) -> None:
    """Commands must not drift apart; comments and prose are translated."""
    english, chinese = (commands((repo / name).read_text(encoding="utf-8")) for name in TWINS)
    assert english == chinese


def test_readme_is_readable_in_one_sitting(repo: Path) -> None:
    for name in TWINS:
        assert (repo / name).read_text(encoding="utf-8").count("\n") <= MAX_LINES, name


PAGES = [
    *TWINS,
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "examples/README.md",
    "ds_configs/README.md",
    *sorted(path.relative_to(REPO).as_posix() for path in (REPO / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(repo: Path, name: str) -> None:
    text = (repo / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    gone = [link for link in links if not ((repo / name).parent / link).exists()]
    assert not gone, f"{name} links to what is not there: {gone}"
