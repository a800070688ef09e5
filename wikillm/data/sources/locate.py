"""Which files `data.path` means: files, folders and globs, in a fixed order, each file once.

A folder stands for the files below it that are named like a corpus (.jsonl, .ndjson, .json, .csv,
.tsv, MediaWiki .xml, each also .gz, .bz2, .xz or .zst, and .parquet). Its .txt files are read only
when it has no other corpus file, since beside data they are notes and licences. The files that are
left out of a folder are logged; `walk` describes how hidden names and links are treated. The format
is detected later, from the content (`sniff`). A plain path that does not exist is an error; a glob
without a match is an error only when no other entry has a match.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from wikillm.core.errors import DataError, did_you_mean
from wikillm.core.files import nearest_existing
from wikillm.core.log import say
from wikillm.core.printable import is_utf8
from wikillm.data.sources.fixes import in_ascii, path_setting, quoted
from wikillm.data.sources.foreign import cannot_be_read
from wikillm.data.sources.walk import Entries, files_of, is_broken, kind_of, matches_of

_COMPRESSED = r"(\.(gz|bz2|xz|zst))?$"
_CORPUS_NAME = re.compile(
    r"\.parquet$|\.(jsonl|ndjson|json|csv|tsv|xml)(-p\d+p\d+[^.]*)?" + _COMPRESSED, re.IGNORECASE
)
"""`-p10p30302` is how Wikimedia names the parts of a dump."""
_TEXT_NAME = re.compile(r"\.txt" + _COMPRESSED, re.IGNORECASE)
_METADATA = (
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
)
"""Metadata of data sets and tokenizers; read only where data.path names the file itself."""

WIKI_ZH_CANDIDATES = (
    "data/wikipedia-zh-cn-*.json",
    "WIKI_CN/wikipedia-zh-cn-*.json",
    "data/zhwiki-*.xml.bz2",
    "WIKI_CN/zhwiki-*.xml.bz2",
    "/data/*/wikipedia-zh-cn-*.json",  # the data volume of a SwanLab Launch job
    "/data/*/zhwiki-*.xml.bz2",
)
"""Patterns that find Chinese Wikipedia when `data.path` is empty or equals this list (as in the
preset wiki-zh). Of the first pattern with a match, the last file by name is read, which is the
newest. Files are never combined, since they hold the same text."""

HOW_TO_GET_DATA = (
    "name your own: data.path=FILE "
    "(.jsonl or .json with a `text` key, or a MediaWiki .xml.bz2 dump)\n"
    "or download Chinese Wikipedia into data/ and start again:\n"
    "  a dump: https://dumps.wikimedia.org/zhwiki/latest/zhwiki-latest-pages-articles.xml.bz2\n"
    "  or clean JSON: wikipedia-zh-cn-20240820.json"
    " of the Hugging Face data set fjcanyue/wikipedia-zh-cn"
)


def is_named_like_a_corpus(name: str, text: bool = False) -> bool:
    """Whether a file of that name is read from a folder; with `text` also a .txt file."""
    return bool(_CORPUS_NAME.search(name) or (text and _TEXT_NAME.search(name)))


def locate(paths: Sequence[str]) -> list[Path]:
    """The files of `data.path` in the order given; the files of a folder or glob are sorted.

    An empty `paths`, or `WIKI_ZH_CANDIDATES` itself, searches for Chinese Wikipedia. Raises
    DataError when a path is missing or is no regular file, or when nothing is found.
    """
    if not paths or tuple(paths) == WIKI_ZH_CANDIDATES:
        return [_chinese_wikipedia()]
    found: list[Path] = []
    for number in range(len(paths)):
        found += _files_of_entry(paths, number)
    if not found:
        raise DataError(
            "No file matches data.path.",
            got=", ".join(paths),
            fix="look at the pattern: `ls -d` shows what it matches;"
            " names that begin with a dot are left out",
        )
    unique: dict[str, Path] = {}
    for path in found:
        unique.setdefault(os.path.realpath(path), path)
    for path in unique.values():
        _refuse_unusable(path)
    return list(unique.values())


def _chinese_wikipedia() -> Path:
    """The file of Chinese Wikipedia that `WIKI_ZH_CANDIDATES` finds."""
    for pattern in WIKI_ZH_CANDIDATES:
        matches = sorted(path for path in map(Path, glob.glob(pattern)) if path.is_file())
        if matches:
            return matches[-1]
    raise DataError(
        "No data: data.path names no file, and no Chinese Wikipedia was found.",
        got="looked for " + ", ".join(WIKI_ZH_CANDIDATES),
        fix=HOW_TO_GET_DATA,
    )


def _files_of_entry(paths: Sequence[str], number: int) -> list[Path]:
    """The files of entry `number` of data.path, which may be a part of a name with commas."""
    entry = paths[number]
    path = Path(os.path.expanduser(entry))
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise _broken_link(path, kind_of(path)) from None
        if glob.has_magic(entry):
            return _files_of_glob(path)
        raise _missing_path(paths, number, path) from None
    except OSError as error:  # a symlink loop, a folder without permission, a name too long
        raise DataError(f"data.path cannot be read: {error.strerror}.", got=entry) from None
    return _files_of_folder(path) if stat.S_ISDIR(mode) else [path]


def _files_of_glob(pattern: Path) -> list[Path]:
    """The files that match, and the files below the folders that match."""
    found: list[Path] = []
    for path in matches_of(pattern):
        kind = kind_of(path)
        if kind == "folder":
            found += _files_of_folder(path, is_named=False)
        elif is_broken(kind):
            raise _broken_link(path, kind)
        else:
            found.append(path)
    return found


def _files_of_folder(folder: Path, is_named: bool = True) -> list[Path]:
    """The files of a folder; `is_named` is False when a glob found it, so that it may be empty."""
    below = files_of(folder)
    for path, kind in below.others:
        if is_broken(kind) and is_named_like_a_corpus(path.name, text=True):
            raise _broken_link(path, kind)
    # Take the files named like a corpus, or else the text files.
    named = [path for path in below.files if is_named_like_a_corpus(path.name)]
    taken = [path for path in named if path.name not in _METADATA]
    has_arrow = any(path.suffix == ".arrow" for path in below.files)
    if has_arrow and all(path.suffix == ".json" for path in taken):
        raise cannot_be_read("Arrow", folder)
    taken = taken or [path for path in below.files if _TEXT_NAME.search(path.name)]
    hidden = [(path, "which is hidden") for path in below.hidden]
    if taken:
        _log_left_out(folder, below, taken)
    elif is_named:
        raise DataError(
            "The folder in data.path holds no file that is named like a corpus.",
            got=f"{folder}: {len(below.files)} files: {_first_names(below.files)}"
            + "".join(f"\nleft out: {path}, {kind}" for path, kind in (*below.others, *hidden)),
            fix="wanted: .jsonl, .ndjson, .json, .csv, .tsv, .txt or .xml,"
            " also as .gz, .bz2, .xz or .zst, or .parquet\nor name the file itself in data.path",
        )
    return taken


def _log_left_out(folder: Path, below: Entries, taken: list[Path]) -> None:
    """Log the entries of a folder that are not read, with the reason."""
    hidden = [p for p in below.hidden if p.is_dir() or is_named_like_a_corpus(p.name)]
    unnamed = sorted(set(below.files).difference(taken))
    kinds = {path: f" ({kind})" for path, kind in below.others}
    for why, paths in (
        ("are not regular files", list(kinds)),
        ("are hidden", hidden),
        ("are not named like a corpus, or are .txt beside data", unnamed),
    ):
        if paths:
            names = [f"{path.relative_to(folder)}{kinds.get(path, '')}" for path in paths]
            say(f"data: left out of {folder}, since they {why}: {_first_names(names)}")


def _first_names(names: Sequence[Path | str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(str, names[:5])) + more


def _broken_link(path: Path, kind: str) -> DataError:
    return DataError(
        "A link of data.path leads nowhere.",
        got=f"{path} is {kind}",
        fix=f"put the file where the link points, or remove the link: rm {quoted(path)}",
    )


def _missing_path(paths: Sequence[str], number: int, path: Path) -> DataError:
    """The error for an entry that does not exist, with the path that was probably meant."""
    # Commas separate paths: a name with a comma arrives in parts.
    entry = paths[number]
    for end in range(number + 2, len(paths) + 1):
        whole = ",".join(paths[number:end])
        if os.path.lexists(os.path.expanduser(whole)):
            return DataError(
                "A name in data.path has a comma in it, and commas separate paths.",
                got=f"{entry} does not exist, {whole} does",
                fix=path_setting(*paths[:number], whole, *paths[end:]),
            )
    # Suggest a similar name from the nearest folder that exists.
    parent = nearest_existing(path)
    wanted = path.absolute().relative_to(parent).parts[0]
    names = sorted(p.name for p in parent.iterdir()) if os.access(parent, os.R_OK | os.X_OK) else []
    names = [name for name in names if not name.startswith(".")]
    usable = [n for n in names if (parent / n).is_dir() or is_named_like_a_corpus(n, text=True)]
    in_other_case = (name for name in usable if name.lower() == wanted.strip().lower())
    similar = next(in_other_case, None)
    stems = {Path(name).stem: name for name in usable}  # equal endings make all names similar
    similar = similar or stems.get(did_you_mean(Path(wanted).stem, stems, cutoff=0.7) or "")
    return DataError(
        "data.path does not exist.",
        got=f"{entry}\nthe nearest folder that exists is {parent}: {_first_names(names)}",
        fix=path_setting(*paths[:number], parent / similar, *paths[number + 1 :])
        if similar
        else "name an existing file or folder; a data set of a hub is hf://OWNER/NAME",
    )


def _refuse_unusable(path: Path) -> None:
    """Refuse a path that is no regular file, a name that is not UTF-8, an empty file."""
    kind = kind_of(path)
    if kind != "file":
        raise DataError(
            f"data.path names {kind}, not a file, and a store needs data that can be read twice.",
            got=str(path),
            fix="write it to a file first and name that file",
        )
    if not is_utf8(str(path)):
        new = re.sub("[\udc80-\udcff]", "_", str(path))
        raise DataError(
            "A file name of data.path is not UTF-8, which the files of a store are.",
            got=str(path),
            fix=f"rename it: mv {in_ascii(path)} {quoted(new)}",
        )
    if not os.access(path, os.R_OK):
        what = "A file of data.path may not be read."
        raise DataError(what, got=str(path), fix=f"chmod u+r {quoted(path)}")
    if path.stat().st_size == 0:
        what = "A file of data.path is empty."
        raise DataError(what, got=str(path), fix="download it again, or leave it out")
