"""Lines by room, as a table.

    python benchmarks/house.py                 # the working tree
    python benchmarks/house.py --at COMMIT     # a commit, without a checkout of it

Used by docs/measurements/2026-11-28-house.md.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPLIT = ("data", "unit")
"""Folders whose own folders are listed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--at", metavar="COMMIT", help="default: the working tree")
    commit = parser.parse_args().at
    with tempfile.TemporaryDirectory() as folder:
        root = ROOT
        if commit is not None:
            root = Path(folder)
            archive = ["git", "-C", str(ROOT), "archive", commit, "wikillm", "tests"]
            content = subprocess.run(archive, check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=content, check=True)
        print("\n".join([*table(root / "wikillm"), "", *table(root / "tests")]))


def table(folder: Path) -> list[str]:
    """A row for each room, the largest first, and the sum."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0] * 6)
    for path in folder.rglob("*.py"):
        counts = [1, *count(path.read_text(encoding="utf-8"))]
        room = room_of(path.relative_to(folder).parts[:-1])
        rows[room] = [a + b for a, b in zip(rows[room], counts, strict=True)]
    ordered = sorted(rows.items(), key=lambda row: -row[1][1])
    total = [sum(column) for column in zip(*rows.values(), strict=True)]
    head = ("files", "lines", "code", "docstrings", "comments", "blank")
    lines = [f"| {folder.name} | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for room, counts in [*ordered, ("all", total)]:
        numbers = " | ".join(f"{number:,}" for number in counts)
        lines.append(f"| {room} | {numbers} |")
    return lines


def room_of(parts: tuple[str, ...]) -> str:
    if not parts:
        return "(top)"
    return "/".join(parts[:2]) if parts[0] in SPLIT else parts[0]


def count(text: str) -> list[int]:
    """Lines in all, of code, of docstrings, of comments alone, and blank ones."""
    lines = text.splitlines()
    in_docstring: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for item in body if isinstance(body, list) else []:
            value = getattr(item, "value", None)
            if isinstance(item, ast.Expr) and isinstance(getattr(value, "value", None), str):
                in_docstring.update(range(item.lineno, (item.end_lineno or item.lineno) + 1))
    blank = sum(not line.strip() for n, line in enumerate(lines, 1) if n not in in_docstring)
    comments = sum(
        line.lstrip().startswith("#") for n, line in enumerate(lines, 1) if n not in in_docstring
    )
    code = len(lines) - len(in_docstring) - blank - comments
    return [len(lines), code, len(in_docstring), comments, blank]


if __name__ == "__main__":
    main()
