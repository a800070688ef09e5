"""List the files below a folder or matched by a glob, and what was left out.

Names that begin with a dot are left out: editors, notebooks and version control keep duplicates
there. Links are followed. Each folder is visited once, by its real path, so that loops end and no
file counts twice. A folder that may not be read is an error. Pipes, sockets, devices, broken links
and token stores are reported with the files.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from wikillm.core.errors import DataError
from wikillm.data.sources.fixes import quoted

_WILDCARDS = "*?["


@dataclass(slots=True)
class Entries:
    """The regular files below a folder, and the entries that are left out."""

    files: list[Path] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)  # with the result of `kind_of`
    hidden: list[Path] = field(default_factory=list)  # names that begin with a dot
    seen: set[str] = field(default_factory=set)  # real paths of the visited folders


def files_of(folder: Path) -> Entries:
    """The entries below `folder`, files and hidden names sorted by their relative paths.

    Raises DataError for a folder that may not be read.
    """
    below = Entries()
    _walk(folder, below)
    for paths in (below.files, below.hidden):
        paths.sort(key=lambda path: path.relative_to(folder))
    return below


def _walk(folder: Path, below: Entries) -> None:
    """Add the entries below `folder` to `below`."""
    real = os.path.realpath(folder)
    if real in below.seen:
        return
    below.seen.add(real)
    entries = _entries_of(folder)
    if {"build.json", "shards", "tokenizer"} <= {path.name for path in entries}:
        below.others.append((folder, "a token store"))
        return
    inner: list[Path] = []
    links: list[Path] = []
    for path in entries:
        if path.name.startswith("."):
            below.hidden.append(path)
            continue
        kind = kind_of(path)
        if kind == "folder":
            (links if path.is_symlink() else inner).append(path)
        elif kind == "file":
            below.files.append(path)
        else:
            below.others.append((path, kind))
    # Links are followed last, so that a folder is listed under its own path, not a link's.
    for path in [*inner, *links]:
        _walk(path, below)


def _entries_of(folder: Path) -> list[Path]:
    """The entries of a folder, sorted. Raises DataError when it may not be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            "A folder of data.path cannot be read.",
            got=f"{folder}: {error.strerror}",
            fix=f"chmod u+rx {quoted(folder)}",
        ) from None


def kind_of(path: Path) -> str:
    """`file`, `folder`, or a description of another kind such as "a FIFO"."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return f"a link to {os.readlink(path)}, which cannot be followed: {error.strerror}"
        return f"cannot be looked at: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "file"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def is_broken(kind: str) -> bool:
    """Whether `kind_of` could not look at the path: a link that leads nowhere, no permission."""
    return kind.startswith(("a link", "cannot"))


def matches_of(pattern: Path) -> list[Path]:
    """The paths that match a glob, sorted; `**` matches any depth.

    Raises DataError for a folder that may not be read.
    """
    parts = pattern.parts
    fixed = next(i for i, part in enumerate(parts) if any(mark in part for mark in _WILDCARDS))
    found: set[Path] = set()
    _match(Path(*parts[:fixed]), parts[fixed:], found)
    return sorted(found)


def _match(base: Path, parts: tuple[str, ...], found: set[Path]) -> None:
    """Add the paths below `base` that match the remaining `parts` of a glob to `found`."""
    if not parts:
        found.add(base)
        return
    part, *others = parts
    rest = tuple(others)
    if part == "**":
        below = Entries()
        _walk(base, below)
        paths = [*below.files, *(path for path, _ in below.others)]
        if not rest:
            found.update(paths)
            return
        # Match the rest in each folder that holds anything.
        folders = {base}
        for path in paths:
            folders.update(p for p in path.parents if p == base or base in p.parents)
        for folder in sorted(folders):
            _match(folder, rest, found)
    elif any(mark in part for mark in _WILDCARDS):
        if kind_of(base) == "folder":
            for path in _entries_of(base):
                is_named = fnmatch.fnmatchcase(path.name, part)
                if is_named and (part.startswith(".") or not path.name.startswith(".")):
                    _match(path, rest, found)
    elif os.path.lexists(base / part):
        _match(base / part, rest, found)
