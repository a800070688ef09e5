"""The repository names no package registry and no path of anyone's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from harness.checkout import files_of

# Written in pieces, so that this file does not find itself.
_DOT = re.escape(".")
HOSTS = [
    "py" + "pi" + _DOT + "org",
    "python" + "hosted" + _DOT + "org",
    "npm" + "js" + _DOT + "(org|com)",
    "deb" + _DOT + "debian" + _DOT + "org",
    "pypi" + _DOT + "tuna",
    "mirrors" + _DOT + r"[a-z]+" + _DOT + r"(edu|com|cn)",
    "conda" + _DOT + "anaconda",
    "proxy" + _DOT + "golang",
    "arti" + "factory",
]
PATHS = [
    r"(?<![\w.])/wo" + r"rk/",
    r"(?<![\w.])/ro" + r"ot/",
    r"/ho" + r"me/(?!USER|me/)\w+",
    r"/opt/" + "wheels",
    "bash" + "_jobs",
]
PATTERN = re.compile("|".join(HOSTS + PATHS))


def tracked(repo: Path) -> list[Path]:
    return [repo / name for name in files_of(repo)]


def test_the_patterns_find_what_they_are_for() -> None:
    for text in (
        "https://py" + "pi.org/simple",
        "see /wo" + "rk/main",
        "files.python" + "hosted.org",
        "/ro" + "ot/.cache",
    ):
        assert PATTERN.search(text), text
    for text in ("the framework/core", "a network/host", "the boot/root of it"):
        assert not PATTERN.search(text), text


def test_no_registry_and_no_machine_is_named(repo: Path) -> None:
    files = tracked(repo)
    assert len(files) > 50, "git lists too few files: this test would pass on nothing"
    found = []
    for path in files:
        name = path.relative_to(repo).as_posix()
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="ignore").splitlines(), start=1
        ):
            for match in PATTERN.finditer(line):
                found.append(f"{name}:{number}: {match[0]}")
    assert not found, "\n".join(found)


def test_no_large_or_binary_files(repo: Path) -> None:
    large = {
        str(path): path.stat().st_size for path in tracked(repo) if path.stat().st_size > 500_000
    }
    assert not large


def test_no_links_are_tracked(repo: Path) -> None:
    """A tracked link such as `.venv` would replace a folder of that name in every checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=repo, capture_output=True, text=True, check=True
    )
    links = [
        line.split("\t")[1] for line in listed.stdout.splitlines() if line.startswith("120000 ")
    ]
    assert not links
