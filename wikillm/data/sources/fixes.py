"""Fixes to paste for an error about a source: settings and shell lines.

File names are quoted for the shell. A shell line reads the source, decompressed, writes a new file
into the working directory, and is followed by the setting that reads that file. It uses only POSIX
tools and `python3`.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from wikillm.data.types import SourceFile

CR_ALONE = "The lines of a file end with CR alone, as on old Macintoshes."
_CAT = {"gz": "gzip -dc --", "bz2": "bzip2 -dc --", "xz": "xz -dc --", "zst": "zstd -dc --"}
_BETWEEN_PARAGRAPHS = re.compile(r"\S[^\S\n]*\n[^\S\n]*\n\s*\S")
_PLAIN_WORD = re.compile(r"[\w@%+=:,./-]+")


def setting(key: str, value: str) -> str:
    """`key=value` as a word of a command line."""
    word = f"{key}={value}"
    return word if _PLAIN_WORD.fullmatch(word) else shlex.quote(word)


def quoted(path: Path | str) -> str:
    """A file name as one word that no command takes for an option."""
    name = str(path)
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def set_aside(folder: Path) -> str:
    """How to replace a token store that cannot be used, without deleting it."""
    return f"move it away and build it again: mv {quoted(folder)} {quoted(f'{folder}.old')}"


def path_setting(path: Path | str) -> str:
    """`data.path=` with one file; a name with a comma needs a list, since commas separate names."""
    name = str(path)
    if "," in name or name.startswith("["):
        return shlex.quote(f'data.path=["{name}"]')
    return setting("data.path", name)


def filtered(path: Path | str, compression: str, command: str, suffix: str) -> str:
    """A line that pipes a file through `command`, and the setting that reads the result."""
    out = free_name(path, suffix)
    if compression == "none":
        line = f"{command} < {quoted(path)} > {out}"
    else:
        line = f"{_CAT[compression]} {quoted(path)} | {command} > {out}"
    return f"{line}\n{path_setting(out)}"


def source_filtered(source: SourceFile, command: str, suffix: str = ".jsonl") -> str:
    return filtered(source.path, source.compression, command, suffix)


def line_feeds(source: SourceFile, suffix: str) -> str:
    """A line that turns carriage returns into line feeds, and the setting that reads it."""
    return source_filtered(source, "tr '\\r' '\\n'", suffix)


def unpacked(path: Path | str, command: str) -> str:
    """A line that unpacks an archive into a new folder, and the setting that reads it."""
    out = free_name(path, "")
    return f"{command} {quoted(path)} {out}\n{path_setting(out)}"


def free_name(path: Path | str, suffix: str) -> str:
    """A name in the working directory that does not exist yet."""
    stem = re.sub(r"[^\w.-]", "_", Path(path).name.split(".")[0]).strip("-.") or "source"
    number = 1
    while os.path.lexists(out := f"{stem}.new{number if number > 1 else ''}{suffix}"):
        number += 1
    return out


def python_lines(expression: str, records: str) -> str:
    """A command that prints `expression` of each `r` of `records` as a line of JSON."""
    code = f"import ast,json,sys; [print(json.dumps({expression})) for r in {records}]"
    return f"python3 -c {shlex.quote(code)}"


def plain_format(text: str) -> str:
    """The setting that splits a plain text: into paragraphs if there are any, else lines."""
    return "data.format=blocks" if _BETWEEN_PARAGRAPHS.search(text) else "data.format=lines"
