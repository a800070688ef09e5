"""Refuse files that hold no readable text, by their first bytes: archives, binaries, pointers."""

from __future__ import annotations

import re
from pathlib import Path

from wikillm.core.errors import DataError

_KINDS = {
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "RAR",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x1f\x9d": "compress (.Z)",
    b"ARROW1": "Arrow",
    b"\xff\xff\xff\xff": "Arrow",  # a stream
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"\x89HDF": "HDF5",
    b"SQLite format 3\0": "SQLite",
    b"-- MySQL dump": "SQL",  # of a wiki: tables of links, no articles
    b"-- MariaDB dump": "SQL",
    b"/*M!999999": "SQL",
    b"\x93NUMPY": "NumPy",
    b"%PDF-": "PDF",
    b"FEA1": "Feather",
    **{b"\x80" + protocol: "pickle" for protocol in (b"\x02", b"\x03", b"\x04", b"\x05")},
}
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = re.compile(rb"(\.\./)*(/annex/objects|\.git/annex/objects)/")
MAX_MARK = 64
_CONTROLS = bytes({*range(0x1C)} - {0x01, *b"\t\n\v\f\r\x1b"})
"""Control characters that are rare in text; 0x01 and 0x1c to 0x1f may separate fields."""
_FEW_CONTROLS = 8  # number of control characters that a short text may have, as a final Ctrl-Z
_HOW_TO_CONVERT = (
    "unpack or convert it, and name the result in data.path: JSON Lines, Parquet or plain text"
)


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raise DataError if `start`, the first `MAX_MARK` bytes, is not the start of a source."""
    is_lfs = start.startswith(_LFS)
    if is_lfs or _ANNEX.match(start):
        name = "Git LFS" if is_lfs else "git-annex"
        raise DataError(
            f"A file is a {name} pointer: it names its content but does not hold it.",
            got=f"{path} starts with {start[:42]!r}",
            fix=f"download the content: {'git lfs pull' if is_lfs else 'git annex get'}",
        )
    for magic, name in _KINDS.items():
        if start.startswith(magic):
            raise cannot_be_read(name, path)


def refuse_binary(path: Path, begin: bytes) -> None:
    """Raise DataError when `begin`, decompressed, is not text in any known encoding."""
    if begin[257:262] == b"ustar":
        raise cannot_be_read("tar", path)
    refuse_foreign(path, begin[:MAX_MARK])
    controls = len(begin) - len(begin.translate(None, _CONTROLS))
    if controls * 30 > max(len(begin), _FEW_CONTROLS * 30):
        raise DataError(
            "A file is binary: it holds no text.",
            got=f"{path}: {controls:,} of its first {len(begin):,} bytes are control characters, "
            f"and it starts with {begin[:8]!r}",
            fix=_HOW_TO_CONVERT,
        )


def cannot_be_read(kind: str, path: Path) -> DataError:
    """The error for a file in a known format that WikiLLM does not read."""
    fix = _HOW_TO_CONVERT
    if kind == "Arrow":
        fix += "\nfor a folder that `datasets` saved: "
        fix += 'load_from_disk(FOLDER)["train"].to_parquet("NEW.parquet")'
    return DataError(f"{kind} files cannot be read.", got=str(path), fix=fix)
