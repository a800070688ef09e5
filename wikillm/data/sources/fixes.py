"""Fixes for errors about sources: settings, file names quoted for the shell, conversions."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

from wikillm.data.types import SourceFile

_BETWEEN_PARAGRAPHS = re.compile(r"\S[^\S\n]*\n[^\S\n]*\n\s*\S")
_UNPACK = {"gz": "gzip -dc", "bz2": "bzip2 -dc", "xz": "xz -dc", "zst": "zstd -dc"}
_PLAIN_WORD = re.compile(r"[\w@%+=:,./-]+")


def setting(key: str, value: str) -> str:
    """`key=value` as a word of a command line."""
    word = f"{key}={value}"
    return word if _PLAIN_WORD.fullmatch(word) else shlex.quote(word)


def quoted(path: Path | str) -> str:
    """A file name quoted for the shell, with `./` before a leading `-`."""
    name = str(path)
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def in_ascii(path: Path) -> str:
    """A file name of any bytes, quoted for bash."""
    name = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(path)
    )
    return f"$'{name}'"


def set_aside(folder: Path) -> str:
    """Advice to replace a token store that cannot be used, without deleting it."""
    return f"move it away and build it again: mv {quoted(folder)} {quoted(f'{folder}.old')}"


def path_setting(*paths: Path | str) -> str:
    """`data.path=` for files; a name with a comma is put into a list, since commas separate."""
    names = [str(path) for path in paths]
    if len(names) > 1 or "," in names[0] or names[0].startswith("["):
        return shlex.quote(f"data.path={json.dumps(names, ensure_ascii=False)}")
    return setting("data.path", names[0])


def converted(source: SourceFile, command: str, suffix: str = "") -> str:
    """A command that writes a converted copy to the working directory, and how to read the copy."""
    path = Path(source.path)
    name = path.name.removesuffix(f".{source.compression}")
    stem, dot, ending = name.rpartition(".")
    new = f"{stem or name}.new{suffix or dot + ending}"
    unpack = _UNPACK.get(source.compression)
    pipe = f"{unpack} < {quoted(path)} | {command}" if unpack else f"{command} < {quoted(path)}"
    return f"{pipe} > {quoted(new)}\nthen name {new} in data.path instead: {path_setting(new)}"


def plain_format(text: str, text_key: str = "") -> str:
    """The setting for a text: csv if its first line names `text_key` beside other columns, else
    blocks if it has blank lines, else lines."""
    first = text.partition("\n")[0].strip()
    if (
        text_key
        and text_key in re.split(r"[,;|\t\x01]", first.replace('"', ""))
        and first != text_key
    ):
        return "data.format=csv"
    return "data.format=blocks" if _BETWEEN_PARAGRAPHS.search(text) else "data.format=lines"
