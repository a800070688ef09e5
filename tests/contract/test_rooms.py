"""Names and arguments over the whole package, and the places that ARCHITECTURE.md names."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

MAX_FUNCTIONS_WITH_THE_WHOLE_CONFIGURATION = 15
QUESTION = re.compile(r"^\| (\S.*\?) \| `([^`]+)`", re.MULTILINE)


def modules(repo: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((repo / "wikillm").rglob("*.py")):
        name = path.relative_to(repo).as_posix()
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def names_in(tree: ast.Module) -> set[str]:
    """Functions, classes, their methods and the constants of a module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {
            name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
        }
    return found


def test_no_two_public_classes_share_a_name(repo: Path) -> None:
    places = defaultdict(list)
    for name, tree in modules(repo):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    shared = {name: found for name, found in places.items() if len(found) > 1}
    assert not shared


def test_names_are_imported_from_the_module_that_defines_them(repo: Path) -> None:
    defined = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): names_in(tree)
        for name, tree in modules(repo)
    }
    elsewhere = {
        f"{path.relative_to(repo)}: {node.module}.{alias.name}"
        for folder in ("wikillm", "tests", "benchmarks")
        for path in (repo / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in defined
        for alias in node.names
        if alias.name not in defined[node.module] and f"{node.module}.{alias.name}" not in defined
    }
    assert not elsewhere, sorted(elsewhere)


def test_bounds_are_called_max_and_min(repo: Path) -> None:
    other = re.compile(
        r"_?(MOST|LEAST|FEWEST|LARGEST|LONGEST|SHORTEST|SMALLEST)_?|.*_AT_(MOST|LEAST)"
    )
    found = {
        f"{name}::{target.id}"
        for name, tree in modules(repo)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and other.match(target.id)
    }
    assert found <= {"wikillm/cli/run_config.py::MOST_USED"}


def takes_whole_configuration(node: ast.FunctionDef) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    types = [ast.unparse(arg.annotation) for arg in arguments if arg.annotation is not None]
    return any(re.search(r"\b(RunConfig|Resolved)\b", kind) for kind in types)


def test_few_functions_take_the_whole_configuration(repo: Path) -> None:
    taking = [
        f"{name}::{node.name}"
        for name, tree in modules(repo)
        if not name.startswith(("wikillm/cli/", "wikillm/config/"))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and takes_whole_configuration(node)
    ]
    assert len(taking) <= MAX_FUNCTIONS_WITH_THE_WHOLE_CONFIGURATION, taking


def questions() -> list[tuple[str, str]]:
    page = Path(__file__).resolve().parents[2] / "ARCHITECTURE.md"
    return [match.groups() for match in QUESTION.finditer(page.read_text(encoding="utf-8"))]


def test_twenty_questions_are_answered() -> None:
    assert len(questions()) >= 20


@pytest.mark.parametrize(("question", "place"), questions())
def test_the_place_of_an_answer_exists(repo: Path, question: str, place: str) -> None:
    """A place is `path` or `path::name`; the name is a function, class, method or constant."""
    path, _, name = place.partition("::")
    assert (repo / path).exists(), f"{question} {path} does not exist"
    if name:
        tree = ast.parse((repo / path).read_text(encoding="utf-8"))
        assert name in names_in(tree), f"{question} {path} has no {name}"


def test_every_file_is_listed(repo: Path) -> None:
    page = (repo / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = page.partition("<!-- files -->\n")[2].partition("<!-- end of files -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    listed = {f"{folder}/{name}.py" for folder, names in rows for name in names.split(", ")}
    there = {
        path.relative_to(repo / "wikillm").as_posix()
        for path in (repo / "wikillm").rglob("*.py")
        if path.name != "__init__.py" and path.parent != repo / "wikillm"
    }
    assert listed == there, f"{sorted(listed - there)} are gone, {sorted(there - listed)} are new"
