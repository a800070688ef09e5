"""What shell scripts, YAML files and documents import or start exists under that name."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path

import pytest

KINDS = ("*.md", "*.sh", "*.slurm", "*.yaml", "*.yml", ".ci/run", "Makefile", "Dockerfile")
DATED = ("CHANGELOG.md", "docs/LOG.md", "docs/measurements/", "docs/adr/")
"""Documents that describe earlier commits."""
IMPORT = re.compile(r"from (wikillm[\w.]*|benchmarks[\w.]*|tests[\w.]*) import (\w+(?:, \w+)*)")
MODULE = re.compile(r"python[\d.]* -m ((?:wikillm|benchmarks|tests)(?:\.\w+)*)")
FILE = re.compile(
    r"(?<![\w./-])(?:(?:benchmarks|tests)/[\w./-]+\.py|(?:launch|examples|docs)/[\w./-]+\.(?:sh|md))\b"
)


def scripts(repo: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *KINDS], cwd=repo, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if not name.startswith(DATED)]


def missing(repo: Path, text: str) -> list[str]:
    """What `text` imports or starts and the repository does not have."""
    found = []
    for module, names in IMPORT.findall(text):
        try:
            imported = importlib.import_module(module)
        except ImportError:
            found.append(module)
            continue
        found += [f"{module}.{name}" for name in names.split(", ") if not hasattr(imported, name)]
    for module in MODULE.findall(text):
        path = repo / module.replace(".", "/")
        if not path.is_dir() and not path.with_suffix(".py").is_file():
            found.append(module)
    return found + [name for name in FILE.findall(text) if not (repo / name).is_file()]


def test_names_in_scripts_and_documents_exist(repo: Path) -> None:
    names = scripts(repo)
    assert ".ci/run" in names and "README.md" in names, f"only {names}"
    found = {name: missing(repo, (repo / name).read_text(encoding="utf-8")) for name in names}
    assert not any(found.values()), {name: lost for name, lost in found.items() if lost}


@pytest.mark.parametrize(
    "text",
    [
        "python -c 'from wikillm.train.cpu_ops import build_cpu_op'",
        "from wikillm.core.units import format_nothing",
        ".venv/bin/python -m tests.faults.nothing --trials 3",
        "see tests/unit/test_nothing.py",
    ],
    ids=["module", "name", "started module", "file"],
)
def test_a_lost_name_is_noticed(repo: Path, text: str) -> None:
    assert missing(repo, text), f"nothing was found in {text}"
