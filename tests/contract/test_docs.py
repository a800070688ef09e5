"""The documents: twins in both languages, commands that parse, quoted messages that exist."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from pathlib import Path

import pytest
from harness.pages import commands, words_of

from wikillm.cli import main as cli
from wikillm.config.flags import parse_arguments
from wikillm.core.errors import ConfigError, Problems
from wikillm.observe import names

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
ENGLISH_ONLY = ("LOG.md", "release.md", "extending.md", "faults.md", "adr/", "measurements/")
"""Pages for the project's own developers."""
PAGES = sorted(DOCS.rglob("*.md"))
OUTSIDE = (
    "../README.md",
    "../CONTRIBUTING.md",
    "../examples/README.md",
    "../ds_configs/README.md",
)
RECORDS = ("LOG.md", "adr/", "measurements/")
"""Pages that keep the commands of their day."""
PLACEHOLDER = re.compile(r"[A-Z]{3,}|\.\.\.|\|")
"""What stands for something of the reader's: `RUN`, `FOLDER`, `...`."""


def relative(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def in_both_languages() -> list[str]:
    return [
        relative(page)
        for page in PAGES
        if not page.name.endswith(".zh.md") and not relative(page).startswith(ENGLISH_ONLY)
    ]


def current() -> list[str]:
    """Pages that describe the program as it is now; the twins have the same commands."""
    return [
        relative(page)
        for page in PAGES
        if not page.name.endswith(".zh.md") and not relative(page).startswith(RECORDS)
    ]


def prose(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", in_both_languages())
def test_a_page_has_a_twin_with_the_same_headings_and_commands(page: str) -> None:
    english = DOCS / page
    chinese = english.with_suffix(".zh.md")
    assert chinese.exists(), f"{page} has no Chinese twin"
    levels = [
        [len(found) for found in re.findall(r"^(#{1,4}) \S", prose(path), re.MULTILINE)]
        for path in (english, chinese)
    ]
    assert levels[0] == levels[1]
    found = [commands(path.read_text(encoding="utf-8")) for path in (english, chinese)]
    assert found[0] == found[1]


@pytest.mark.parametrize("page", [*current(), *OUTSIDE])
def test_commands_parse(page: str) -> None:
    """Every `wikillm` command of a page has flags and keys that exist."""
    wrong = []
    for line in commands((DOCS / page).read_text(encoding="utf-8")):
        for part in re.split(r"\s(?:&&|\|\||;|>|<)\s", line):
            words = words_of(part)
            if words[:1] == ["wikillm"] and len(words) > 1 and words[1] in cli.COMMANDS:
                try:
                    parse(words[1], words[2:])
                except (ConfigError, SystemExit) as error:
                    wrong.append(f"{part}: {error}")
            elif words[:1] == ["wikillm"] and not PLACEHOLDER.search(part):
                wrong.append(f"{part}: no such command")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", [*current(), *OUTSIDE])
def test_launchers_start_scripts_that_exist_with_keys_that_exist(page: str) -> None:
    """The words after the script of `deepspeed`, `torchrun`, `mpirun` and `python`."""
    wrong = []
    for line in commands((DOCS / page).read_text(encoding="utf-8")):
        words = words_of(line)
        if not words or words[0] not in ("nohup", "deepspeed", "torchrun", "mpirun", "python"):
            continue
        at = next((n for n, word in enumerate(words) if word.endswith(".py")), None)
        if at is None or PLACEHOLDER.search(line):
            continue
        script = words[at]
        if not script.startswith("llama.cpp/") and not (REPO / script).is_file():
            wrong.append(f"{line}: no file {script}")
        if script == "train.py":
            try:
                parse("train", words[at + 1 :])
            except (ConfigError, SystemExit) as error:
                wrong.append(f"{line}: {error}")
        if "--deepspeed" in words:
            recipe = words[words.index("--deepspeed") + 1]
            if not any((REPO / path).is_file() for path in (recipe, f"ds_configs/{recipe}.json")):
                wrong.append(f"{line}: no recipe {recipe}")
    assert not wrong, "\n".join(wrong)


def parse(name: str, words: list[str]) -> None:
    """As the program does, without running the command."""
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    importlib.import_module(f"wikillm.cli.{name}").configure(parser)
    if any(PLACEHOLDER.fullmatch(word) for word in words):
        return
    _, rest = parser.parse_known_args(words)
    problems = Problems(ConfigError)
    if name in cli.TAKES_CONFIG and rest[:1] not in (["data"], ["task"], ["show"]):
        parse_arguments(rest, problems)
    elif name not in cli.TAKES_CONFIG and rest:
        raise ConfigError("unknown words", got=" ".join(rest))
    problems.raise_if_any()


@pytest.mark.parametrize("page", ["troubleshooting.md", "troubleshooting.zh.md"])
def test_quoted_messages_exist(page: str) -> None:
    """Each text block of the page quotes the program, with `...` for what varies."""
    said = "\n".join(literals())
    blocks = re.findall(
        r"^```text\n(.*?)^```", (DOCS / "guide" / page).read_text(), re.DOTALL | re.MULTILINE
    )
    quoted = [line for block in blocks for line in block.splitlines()]
    assert len(quoted) > 10
    parts = [part.strip(" .;`") for line in quoted for part in line.split("...")]
    gone = [part for part in parts if len(part) > 11 and part.removeprefix("warning: ") not in said]
    assert not gone, f"no message of the program: {gone}"


def literals() -> list[str]:
    """All texts of the program: adjacent literals joined, `{}` for the values of f-strings."""
    found = []
    for path in (REPO / "wikillm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                values = (str(getattr(part, "value", "")) for part in node.values)
                found.append("".join(v if not v.startswith("<ast") else "{}" for v in values))
    return found


@pytest.mark.parametrize("page", ["metrics.md", "metrics.zh.md"])
def test_every_metric_is_explained(page: str) -> None:
    text = (DOCS / "guide" / page).read_text(encoding="utf-8")
    events = {"KIND", "START", "WORLD_SIZE", "EVAL", "SAMPLES", "SPIKE", "FINISH", "TASKS"}
    metrics = {
        value
        for name, value in vars(names).items()
        if name.isupper() and isinstance(value, str) and name not in events
    }
    assert len(metrics) > 20
    assert not [name for name in metrics if f"`{name}`" not in text and f"`{name}/" not in text]


def test_the_site_names_every_page() -> None:
    listed = set(re.findall(r"[\w\-/]+\.md", (REPO / "mkdocs.yml").read_text(encoding="utf-8")))
    listed -= {"reference/keys.md", "reference/commands.md"}
    pages = {
        relative(page)
        for page in PAGES
        if not page.name.endswith(".zh.md") and not relative(page).startswith(("adr/", "measur"))
    }
    assert listed == pages


def test_pages_that_the_code_names_exist() -> None:
    gone = []
    for path in (REPO / "wikillm").rglob("*.py"):
        named = re.findall(r"docs/[\w./-]+\.(?:md|json|svg)", path.read_text(encoding="utf-8"))
        gone += [f"{path.name}: {page}" for page in named if not (REPO / page).exists()]
    assert not gone
