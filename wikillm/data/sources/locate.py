"""Which files `data.path` means: files, folders and globs, in a fixed order, each file once.

A folder stands for the files below it that are named like a corpus (.jsonl, .ndjson, .json, .csv, .tsv, MediaWiki .xml,
each also .gz, .bz2, .xz or .zst, and .parquet); .txt files count when there are no others, since beside data they are
notes and licences. Names that begin with a dot are left out, links are followed once (see `walk`), and what else is
left out of a folder is logged. What is in the files is decided by `sniff`. A plain path that does not exist is an
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
from wikillm.core.files import nearest_existing
from wikillm.core.log import say
from wikillm.data.sources.fixes import path_setting, quoted
from wikillm.data.sources.foreign import arrow_folder
from wikillm.data.sources.walk import files_of, kind_of, matches_of

_COMPRESSED = r"(\.(gz|bz2|xz|zst))?$"
CORPUS_NAME = re.compile(
    r"\.parquet$|\.(jsonl|ndjson|json|csv|tsv|xml)(-p\d+p\d+[^.]*)?" + _COMPRESSED, re.IGNORECASE
)
"""Names taken from a folder. `-p10p30302` is how Wikimedia names the parts of a dump."""
_METADATA = (
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
)
"""Files that data sets and tokenizers have beside their data: taken only where they are named themselves."""
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
    for number, entry in enumerate(paths):
        found += _expand(entry, paths[number + 1 :])
    if not found:
        fix = "look at the pattern: `ls -d` shows what it matches; names that begin with a dot are left out"
        raise DataError("No file matches data.path.", got=_listed(paths), fix=fix)
    unique: dict[str, Path] = {}
    for path in found:
        unique.setdefault(os.path.realpath(path), path)
    for path in unique.values():
        _refuse_special(path)
    return list(unique.values())


def _default(root: Path) -> Path:
    for pattern in WIKI_ZH_CANDIDATES:
        below = os.path.join(glob.escape(str(root)), pattern)  # an absolute pattern stays as it is
        matches = sorted(path for match in glob.glob(below) if (path := Path(match)).is_file())
        if matches:
            path = matches[-1]
            return (
                path.relative_to(root) if root == Path.cwd() and path.is_relative_to(root) else path
            )
    raise DataError(
        "No data: data.path names no file, and no Chinese Wikipedia is here.",
        got="looked for " + ", ".join(WIKI_ZH_CANDIDATES),
        fix=HOW_TO_GET_DATA,
    )


def _expand(entry: str, following: Sequence[str]) -> list[Path]:
    """The files of one entry; `following` are those after it, for a name that was cut at a comma."""
    path = Path(entry).expanduser()
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise _dangling(path, kind_of(path)) from None
        if glob.has_magic(entry):
            return _of_glob(path)
        raise _missing(entry, path, following) from None
    except OSError as error:  # a symlink loop, a folder without permission, a name too long
        raise DataError(f"data.path cannot be read: {error.strerror}.", got=entry) from None
    return _of_folder(path) if stat.S_ISDIR(mode) else [path]


def _of_glob(pattern: Path) -> list[Path]:
    """Files that match, and the files below folders that do."""
    found: list[Path] = []
    for path in matches_of(pattern):
        kind = kind_of(path)
        if kind == "folder":
            found += _of_folder(path, is_named=False)
        elif kind.startswith(("a link", "cannot")):
            raise _dangling(path, kind)
        else:
            found.append(path)
    return found


def _of_folder(folder: Path, is_named: bool = True) -> list[Path]:
    below = files_of(folder)
    for path, kind in below.others:
        if kind.startswith(("a link", "cannot")) and (
            CORPUS_NAME.search(path.name) or TEXT_NAME.search(path.name)
        ):
            raise _dangling(path, kind)
    arrow = [path for path in below.files if path.suffix == ".arrow"]
    taken = [
        path for path in below.files if CORPUS_NAME.search(path.name) and path.name not in _METADATA
    ]
    if arrow and all(path.suffix == ".json" for path in taken):
        raise arrow_folder(folder, arrow)
    texts = [path for path in below.files if TEXT_NAME.search(path.name)]
    used = {*taken, *texts}
    rest = [path for path in below.files if path not in used]
    if taken and texts:
        say(
            f"data: {len(texts)} .txt files of {folder} are left out beside {taken[0].name}; a glob would name them"
        )
    hidden = [path for path in below.hidden if path.is_dir() or CORPUS_NAME.search(path.name)]
    for paths, why in (
        (
            [f"{path.relative_to(folder)} ({kind})" for path, kind in below.others],
            "are not regular files",
        ),
        ([str(path.relative_to(folder)) for path in hidden], "are hidden"),
        ([str(path.relative_to(folder)) for path in rest], "are not named like a corpus"),
    ):
        if paths and (taken or texts):
            more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
            say(f"data: left out of {folder}, since they {why}: {_listed(paths[:5])}{more}")
    if taken or texts or not is_named:
        return taken or texts
    every = below.files
    raise DataError(
        "The folder in data.path holds no file that is named like a corpus.",
        got=f"{folder}: {len(every)} files"
        + (f", such as {_listed(p.name for p in every[:3])}" if every else ""),
        fix="wanted: .jsonl, .ndjson, .json, .csv, .tsv, .txt or .xml, also as .gz, .bz2, .xz or .zst, or .parquet\n"
        "or name the file itself in data.path",
    )


def _dangling(path: Path, kind: str) -> DataError:
    return DataError(
        "A link of data.path leads nowhere.",
        got=f"{path} is {kind}",
        fix=f"put the file where the link points, or remove the link: rm {quoted(path)}",
    )


def _missing(entry: str, path: Path, following: Sequence[str]) -> DataError:
    whole = entry
    for part in following:
        whole += f",{part}"
        if os.path.lexists(os.path.expanduser(whole)):
            return DataError(
                "A name in data.path has a comma in it, and commas separate paths.",
                got=f"{entry} does not exist, {whole} does",
                fix=path_setting(whole),
            )
    braces = re.search(r"\{[^{}]*$", entry)
    if braces and following:
        fix = "quote nothing and let the shell expand it, or name each file: data.path=A,B; or a glob: data.path='*.jsonl'"
        return DataError(
            "Braces in data.path are not expanded.", got=",".join([entry, *following]), fix=fix
        )
    parent = nearest_existing(path)
    names = sorted(p.name for p in parent.iterdir()) if os.access(parent, os.R_OK | os.X_OK) else []
    wanted = path.absolute().relative_to(parent).parts[0]
    near = next((name for name in names if name.lower() == wanted.lower()), None) or _near(
        path, parent, wanted, names
    )
    if near:
        fix = path_setting(
            Path(entry).with_name(near) if parent == path.absolute().parent else parent / near
        )
    else:
        fix = "data.path=FILE or FOLDER that exists"
    got = f"{entry}\nthe nearest folder that exists is {parent}"
    got += (
        f", which holds {_listed(names[:5])}" + (" ..." if len(names) > 5 else "")
        if names
        else ", which is empty"
    )
    return DataError("data.path does not exist.", got=got, fix=fix)


def _near(path: Path, parent: Path, wanted: str, names: list[str]) -> str | None:
    """A similar name that can be used: a folder for a folder, a file that is named like a corpus for a file."""
    is_last = parent == path.absolute().parent
    usable = [
        name
        for name in names
        if (parent / name).is_dir()
        or (is_last and (CORPUS_NAME.search(name) or TEXT_NAME.search(name)))
    ]
    return did_you_mean(wanted, usable)


def _refuse_special(path: Path) -> None:
    kind = kind_of(path)
    if kind != "file":
        raise DataError(
            f"data.path names {kind}, not a file: a store is built from what can be read twice.",
            got=str(path),
            fix="write it to a file first and name that file",
        )
    if not os.access(path, os.R_OK):
        raise DataError(
            "A file of data.path may not be read.", got=str(path), fix=f"chmod u+r {quoted(path)}"
        )
    if path.stat().st_size == 0:
        raise DataError(
            "A file of data.path is empty.", got=str(path), fix="download it again, or leave it out"
        )


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)
