"""Which files `data.path` means: files, folders and globs, in a fixed order, each file once.

A folder stands for the files below it that are named like a corpus (.jsonl, .ndjson, .json, .csv, .tsv, MediaWiki .xml,
each also .gz, .bz2, .xz or .zst, and .parquet); .txt files count when there are no others, since beside data they are
notes and licences. What is in them is decided by `sniff`. A plain path that does not exist is an
error; a glob that matches nothing is one only when no other entry matches anything either.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from wikillm.core.errors import DataError, did_you_mean
from wikillm.core.files import files_below, nearest_existing
from wikillm.core.log import say

_COMPRESSED = r"(\.(gz|bz2|xz|zst))?$"
CORPUS_NAME = re.compile(r"\.parquet$|\.(jsonl|ndjson|json|csv|tsv|xml)(-p\d+p\d+[^.]*)?" + _COMPRESSED, re.IGNORECASE)
"""Names taken from a folder. `-p10p30302` is how Wikimedia names the parts of a dump."""
TEXT_NAME = re.compile(r"\.txt" + _COMPRESSED, re.IGNORECASE)

WIKI_ZH_CANDIDATES = (
    "data/wikipedia-zh-cn-*.json",
    "WIKI_CN/wikipedia-zh-cn-*.json",
    "data/zhwiki-*.xml.bz2",
    "WIKI_CN/zhwiki-*.xml.bz2",
    "/data/*/wikipedia-zh-cn-*.json",  # the data volume of a SwanLab Launch job
    "/data/*/zhwiki-*.xml.bz2",
)
"""Where Chinese Wikipedia is looked for when `data.path` is empty or is this list (as in the preset wiki-zh): the
first that matches, and of its files the last by name, which is the newest. Never two of them: they are one text."""

HOW_TO_GET_DATA = (
    "name your own: data.path=FILE (.jsonl or .json with a `text` key, or a MediaWiki .xml.bz2 dump)\n"
    "or download Chinese Wikipedia into data/ and start again:\n"
    "  a dump: https://dumps.wikimedia.org/zhwiki/latest/zhwiki-latest-pages-articles.xml.bz2\n"
    "  or clean JSON: wikipedia-zh-cn-20240820.json of the Hugging Face data set fjcanyue/wikipedia-zh-cn"
)


def locate(paths: Sequence[str], root: Path | None = None) -> list[Path]:
    """The files of `data.path`, in the order given, the content of folders and globs sorted.

    An empty `paths`, or `WIKI_ZH_CANDIDATES` itself, looks for Chinese Wikipedia below `root`, by default the working
    directory. Raises DataError when a path is missing, is no regular file, or when nothing is found.
    """
    if not paths or tuple(paths) == WIKI_ZH_CANDIDATES:
        return [_default(root or Path.cwd())]
    found: list[Path] = []
    for entry in paths:
        found += _expand(entry)
    if not found:
        raise DataError("No file matches data.path.", got=_listed(paths), fix=HOW_TO_GET_DATA)
    unique: dict[str, Path] = {}
    for path in found:
        _refuse_special(path)
        unique.setdefault(os.path.realpath(path), path)
    return list(unique.values())


def _default(root: Path) -> Path:
    for pattern in WIKI_ZH_CANDIDATES:
        below = os.path.join(glob.escape(str(root)), pattern)  # an absolute pattern stays as it is
        matches = sorted(path for match in glob.glob(below) if (path := Path(match)).is_file())
        if matches:
            path = matches[-1]
            return path.relative_to(root) if root == Path.cwd() and path.is_relative_to(root) else path
    raise DataError(
        "No data: data.path names no file, and no Chinese Wikipedia is here.",
        got="looked for " + ", ".join(WIKI_ZH_CANDIDATES),
        fix=HOW_TO_GET_DATA,
    )


def _expand(entry: str) -> list[Path]:
    path = Path(entry).expanduser()
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if glob.has_magic(entry):
            return [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if not Path(match).is_dir()]
        raise _missing(entry, path) from None
    except OSError as error:  # a symlink loop, a folder without permission, a name too long
        raise DataError(f"data.path cannot be read: {error.strerror}.", got=entry) from None
    return _of_folder(path) if stat.S_ISDIR(mode) else [path]


def _of_folder(folder: Path) -> list[Path]:
    every = [path for path in files_below(folder) if not path.name.startswith(".")]
    taken = [path for path in every if CORPUS_NAME.search(path.name)]
    texts = [path for path in every if TEXT_NAME.search(path.name)]
    if taken and texts:
        say(f"data: {len(texts)} .txt files of {folder} are left out beside {taken[0].name}; a glob would name them")
    if taken or texts:
        return taken or texts
    raise DataError(
        "The folder in data.path holds no file that is named like a corpus.",
        got=f"{folder}: {len(every)} files" + (f", such as {_listed(p.name for p in every[:3])}" if every else ""),
        fix="wanted: .jsonl, .ndjson, .json, .csv, .tsv, .txt or .xml, also as .gz, .bz2, .xz or .zst, or .parquet\n"
        "or name the file itself in data.path",
    )


def _missing(entry: str, path: Path) -> DataError:
    parent = nearest_existing(path)
    names = sorted(p.name for p in parent.iterdir()) if os.access(parent, os.R_OK | os.X_OK) else []
    wanted = path.absolute().relative_to(parent).parts[0]
    near = did_you_mean(wanted, names)
    if near:
        fix = f"data.path={Path(entry).with_name(near) if parent == path.absolute().parent else parent / near}"
    elif names:
        fix = f"name a file that exists; that folder holds {_listed(names[:5])}" + (" ..." if len(names) > 5 else "")
    else:
        fix = HOW_TO_GET_DATA
    return DataError("data.path does not exist.", got=f"{entry}\nthe nearest folder that exists is {parent}", fix=fix)


def _refuse_special(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise DataError(
            f"data.path names a {kind}, not a file: a store is built from what can be read twice.",
            got=str(path),
            fix="write it to a file first and name that file",
        )
    if not os.access(path, os.R_OK):
        raise DataError("A file of data.path may not be read.", got=str(path), fix=f"chmod u+r {path}")
    if path.stat().st_size == 0:
        raise DataError("A file of data.path is empty.", got=str(path), fix="download it again, or leave it out")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)
