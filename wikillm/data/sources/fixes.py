"""Fixes for errors about sources: settings, file names quoted for the shell, conversions."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

HOW_TO_WRITE_JSON = (
    'write {"text": "..."} on each line (JSON Lines), or one array of such objects\n'
    "if objects span several lines: jq -c . FILE > NEW.jsonl\n"
    "if the records are in a list inside an object: jq -c '.KEY[]' FILE > NEW.jsonl\n"
    "if lines end with a comma: sed 's/,[[:space:]]*$//' FILE > NEW.jsonl\n"
    "for Python dicts, chat turns or texts in several parts: write each record with json.dumps"
)
_BETWEEN_PARAGRAPHS = re.compile(r"\S[^\S\n]*\n[^\S\n]*\n\s*\S")
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


def path_setting(path: Path | str) -> str:
    """`data.path=` for one file; a name with a comma is put into a list, since commas separate."""
    name = str(path)
    if "," in name or name.startswith("["):
        return shlex.quote(f'data.path=["{name}"]')
    return setting("data.path", name)


def converted(command: str) -> str:
    """Advice to convert a file with `command` and to name the result in data.path."""
    return f"{command} < FILE > NEW (decompress FILE first), and name NEW in data.path"


def plain_format(text: str) -> str:
    """The setting that splits a plain text: at blank lines if it has any, else at each line."""
    return "data.format=blocks" if _BETWEEN_PARAGRAPHS.search(text) else "data.format=lines"
