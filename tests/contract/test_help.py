"""`--help` costs nothing: it imports no heavy package, whichever command is asked."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from wikillm.cli.main import COMMANDS

HEAVY = {"torch", "transformers", "deepspeed", "accelerate", "datasets", "tokenizers"}
HEAVY |= {"swanlab", "modelscope", "pandas", "shtab"}
PROBE = """
import json, sys
from wikillm.cli.main import main
code = main(sys.argv[1:])
modules = sorted({name.split(".")[0] for name in sys.modules})
print("\\n" + json.dumps({"code": code, "modules": modules}))
"""


def probe(*words: str) -> tuple[dict[str, object], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    *shown, facts = done.stdout.rstrip().splitlines()
    return json.loads(facts), "\n".join(shown) + done.stderr


@pytest.mark.parametrize(
    "words", [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    facts, shown = probe(*words)
    assert facts["code"] == 0, shown
    assert HEAVY.isdisjoint(facts["modules"])  # type: ignore[arg-type]


def test_top_help_imports_only_the_core_and_lists_every_command() -> None:
    facts, shown = probe("--help")
    assert not {"pydantic", "yaml", "numpy"} & set(facts["modules"])  # type: ignore[call-overload]
    for name, about in COMMANDS.items():
        assert name in shown and about in shown


SCHEMA = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}
SCHEMA |= {"yaml"}
LOADED = """
import importlib, json, sys
if sys.argv[1] == "import":
    importlib.import_module(sys.argv[2])
else:
    from wikillm.cli.main import main
    assert main(sys.argv[1:]) == 0
parts = {name.split(".")[0] for name, module in sys.modules.items()
         if "site-packages" in (getattr(module, "__file__", None) or "")}
print("\\n" + json.dumps([len(sys.modules), sorted(parts)]))
"""


@pytest.mark.parametrize(
    ("words", "packages", "most"),
    [
        ("plan", SCHEMA, 360),
        ("config show", SCHEMA, 340),
        ("presets", SCHEMA, 340),
        ("doctor --list", {"packaging", "psutil", "xxhash"}, 300),
        ("import wikillm.cli.data", set(), 180),
        ("import wikillm.cli.ladder", SCHEMA - {"yaml"}, 290),
        ("import wikillm.cli.report", set(), 180),
        ("import wikillm.supervise.status", set(), 180),
        ("import wikillm.report.page", {"jinja2", "markupsafe", "orjson"}, 270),
        ("import wikillm.ledger.audit", {"numpy", "orjson", "tokenizers", "xxhash"}, 400),
    ],
)
def test_commands_without_torch_import_what_they_need(
    words: str, packages: set[str], most: int
) -> None:
    """Most of their time is imports: 0.2 s with these, 0.4 s where the schema came along."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words.split()], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    count, found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) <= packages | {"_distutils_hack", "wikillm"}
    assert count <= most


def test_a_wrong_recipe_ends_a_start_before_its_imports() -> None:
    facts, shown = probe("train", "--deepspeed", "zero4")
    assert facts["code"] == 2 and "No DeepSpeed JSON at zero4" in shown
    assert HEAVY.isdisjoint(facts["modules"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_explained(name: str) -> None:
    import argparse

    module = importlib.import_module(f"wikillm.cli.{name}")
    parser = argparse.ArgumentParser()
    module.configure(parser)
    silent = [action.dest for action in parser._actions if not action.help]
    assert not silent, f"wikillm {name} --help does not explain {silent}"
