"""Files and functions are short, names are specific, asserts have messages."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

MAX_LINES_IN_A_FILE = 400
MAX_LINES_IN_A_FUNCTION = 60
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}


def sources(repo: Path, *folders: str) -> Iterator[tuple[str, str]]:
    for folder in folders:
        for path in sorted((repo / folder).rglob("*.py")):
            yield path.relative_to(repo).as_posix(), path.read_text(encoding="utf-8")


def functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_files_are_short(repo: Path) -> None:
    long = {
        p: n
        for p, text in sources(repo, "wikillm", "tests", "benchmarks")
        if (n := text.count("\n")) > MAX_LINES_IN_A_FILE
    }
    assert not long, f"longer than {MAX_LINES_IN_A_FILE} lines: {long}"


def test_functions_are_short(repo: Path) -> None:
    long = {
        f"{path}::{node.name}": lines
        for path, text in sources(repo, "wikillm", "benchmarks")
        for node in functions(text)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_LINES_IN_A_FUNCTION
    }
    assert not long, f"longer than {MAX_LINES_IN_A_FUNCTION} lines: {long}"


def test_every_file_has_a_room_and_a_name(repo: Path) -> None:
    nameless = [
        p
        for p, _ in sources(repo, "wikillm", "tests", "benchmarks")
        if NAMELESS & set(Path(p).with_suffix("").parts)
    ]
    assert not nameless, f"say what is in them: {nameless}"


def test_asserts_say_what_went_wrong(repo: Path) -> None:
    bare = [
        f"{path}:{node.lineno}"
        for path, text in sources(repo, "wikillm", "benchmarks")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assert) and node.msg is None
    ]
    assert not bare, f"asserts without a message: {bare}"


def packs_unrelated_values(node: ast.AST) -> bool:
    """`a, b = x, y`, unless a value needs the old value of a target, as in a swap."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    if not isinstance(node.targets[0], ast.Tuple):
        return False
    targets = {ast.unparse(target) for target in node.targets[0].elts}
    used = {ast.unparse(part) for part in ast.walk(node.value) if isinstance(part, ast.expr)}
    return not targets & used


def test_one_assignment_per_line(repo: Path) -> None:
    packed = [
        f"{path}:{node.lineno}"
        for path, text in sources(repo, "wikillm")
        for node in ast.walk(ast.parse(text))
        if packs_unrelated_values(node)
    ]
    assert not packed, f"several assignments in one statement: {packed}"


def test_makefile_has_few_one_line_targets(repo: Path) -> None:
    lines = (repo / "Makefile").read_text(encoding="utf-8").splitlines()
    # `TARGETS: NAME = value` sets a variable of targets that are defined elsewhere.
    targets = [i for i, line in enumerate(lines) if re.match(r"[a-z][\w -]*:(?! [A-Z]+ =)", line)]
    assert 0 < len(targets) <= 15, [lines[i] for i in targets]
    recipes = [line for line in lines if line.startswith("\t")]
    assert len(recipes) <= len(targets), "a target has more than one line"


def test_shell_scripts_parse(repo: Path) -> None:
    scripts = [
        repo / ".ci" / "run",
        *sorted((repo / "launch").glob("*.sh")),
        *sorted((repo / "launch").glob("*.sbatch")),
    ]
    for script in scripts:
        shell = "sh" if script.name == "bootstrap.sh" else "bash"
        done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert script.read_text().count("\n") <= 60, (
            f"{script} is long for a script: move it into the package"
        )
