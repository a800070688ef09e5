"""No module of wikillm imports itself through others, in functions and for annotations included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Graph = dict[str, set[str]]


def imports_of(folder: Path) -> Graph:
    """The modules of the package at `folder` that each of its modules imports, anywhere in it."""
    files = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: Graph = {}
    for module, path in files.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    named.add(submodule if submodule in files else str(node.module))
        graph[module] = (named & files.keys()) - {module}
    return graph


def circles_in(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def test_no_module_imports_itself_through_others() -> None:
    assert circles_in(imports_of(ROOT / "wikillm")) == []


@pytest.mark.parametrize(
    "back",
    [
        "from p.a import X",
        "import p.a",
        "from p import a",
        "def f():\n    from p.a import X",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import X",
    ],
)
def test_a_circle_is_noticed_wherever_its_imports_stand(tmp_path: Path, back: str) -> None:
    package = tmp_path / "p"
    package.mkdir()
    files = {"__init__": "", "a": "from p.b import Y", "b": "from p.c import Z", "c": back, "d": ""}
    for name, text in files.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    assert circles_in(imports_of(package)) == [["p.a", "p.b", "p.c"]]
