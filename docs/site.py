"""Builds the documents as a site, build/site: `make docs`.

mkdocs reads its pages from build/docs, which is made here.

Pages are copied from docs/. Two are generated from the program: all keys and all commands. Links to
source files and to other folders' READMEs work where the repository is read; for the site such a
file is copied as text, below `repository/`, and the link points there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

REPO = Path(__file__).resolve().parent.parent
OUT = REPO / "build" / "docs"
WORDS = REPO / "build" / "words.txt"
"""Terms for the search, whose own dictionary divides 把续训写到 into 把续 and 训写."""
PACKAGES = ("material", "mkdocs_static_i18n", "jieba")
COPIED = (".md", ".png", ".svg", ".json")
_RECORDS = ("LOG.md", "adr/", "measurements/")
_BOOST = "---\nsearch:\n  boost: 0.1\n---\n\n"
"""Records of their day come last in a search."""
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
_TITLES = {
    "": ("Configuration keys", "Every key of a run's YAML and command line, from the schema."),
    ".zh": ("配置项", "运行的 YAML 文件与命令行中的全部配置项，由程序的 schema 生成，说明为英文。"),
}
_COMMANDS = {
    "": ("Commands", "The answers of `--help`."),
    ".zh": ("命令", "各命令 `--help` 的输出。"),
}


def main() -> None:
    gather_pages()
    if not all(map(find_spec, PACKAGES)):
        pip = [sys.executable, "-m", "pip", "install", "-q", "-c", "constraints.txt", ".[docs]"]
        subprocess.run(pip, cwd=REPO, check=True)
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.run(mkdocs, cwd=REPO, check=True, env=quiet)


def gather_pages() -> None:
    """Writes build/docs and build/words.txt."""
    shutil.rmtree(OUT, ignore_errors=True)
    docs = REPO / "docs"
    OUT.mkdir(parents=True)
    WORDS.write_text(chinese_terms(), encoding="utf-8")
    for path in sorted(docs.rglob("*")):
        if path.suffix not in COPIED:
            continue
        target = OUT / path.relative_to(docs)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            page = path.relative_to(docs).as_posix()
            head = _BOOST if page.startswith(_RECORDS) else ""
            text = for_site(page, path.read_text(encoding="utf-8"))
            target.write_text(head + text, encoding="utf-8")
        else:
            shutil.copyfile(path, target)
    (OUT / "reference").mkdir()
    keys = keys_table()
    commands = commands_help()
    for suffix in ("", ".zh"):
        for name, (title, about), body in (
            ("keys", _TITLES[suffix], keys),
            ("commands", _COMMANDS[suffix], commands),
        ):
            text = f"# {title}\n\n{about}\n\n{body}\n"
            (OUT / "reference" / f"{name}{suffix}.md").write_text(text, encoding="utf-8")


def for_site(page: str, text: str) -> str:
    """The page with its links out of docs/ pointing at copies, which are made."""
    up = "../" * (len(PurePosixPath(page).parts) - 1)

    def replaced(match: re.Match[str]) -> str:
        path = os.path.normpath(f"docs/{PurePosixPath(page).parent}/{match[1]}")
        if path.startswith("docs/"):
            return match[0]
        return f"]({up}repository/{copied(path)})"

    return _LINK.sub(replaced, text)


def copied(path: str) -> str:
    """Copies a file of the repository, or a folder's list of names, and returns its name there."""
    source = REPO / path
    name = f"{path.replace('.', '-')}.txt"  # with another dot its name would have a language
    target = OUT / "repository" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.write_text("\n".join(sorted(os.listdir(source))), encoding="utf-8")
    else:
        shutil.copyfile(source, target)
    return name


def chinese_terms() -> str:
    """The glossary's short Chinese terms, one a line with a frequency, as jieba reads them.

    Longer terms consist of words; as a whole they would hide these: 断点续训 is found by 续训.
    """
    glossary = (REPO / "docs" / "glossary.zh.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| [^|]+ \| ([^|]+) \|", glossary, re.MULTILINE)
    terms = {term for cell in cells for term in re.findall(r"[\u4e00-\u9fff]+", cell)}
    return "".join(f"{term} 1000000\n" for term in sorted(terms) if 2 <= len(term) <= 3)


def keys_table() -> str:
    """A table of every section: key, default, meaning."""
    from wikillm.config.keys import all_keys
    from wikillm.config.resolved import typed_form

    sections: dict[str, list[str]] = {}
    for key in all_keys().values():
        section = key.name.rpartition(".")[0]
        cells = (f"`{key.name}`", f"`{typed_form(key.default)}`", key.doc)
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        sections.setdefault(section, []).append(f"| {row} |")
    head = "| key | default | |\n|---|---|---|\n"
    return "\n\n".join(f"## {name}\n\n{head}" + "\n".join(sections[name]) for name in sections)


def commands_help() -> str:
    """What each command's `--help` prints."""
    from wikillm.cli.main import COMMANDS

    shown = []
    environment = os.environ | {"COLUMNS": "100"}
    for name in COMMANDS:
        words = [sys.executable, "-m", "wikillm", name, "--help"]
        answer = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        shown.append(f"## {name}\n\n```\n{answer.stdout.strip()}\n```")
    return "\n\n".join(shown)


if __name__ == "__main__":
    main()
