"""Files without text to read, known by their first bytes: archives, binary formats, pointers.

Each is refused, with the command that gives a readable file where there is one.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from wikillm.core.errors import DataError
from wikillm.data.sources.fixes import filtered, free_name, path_setting, quoted, unpacked

_ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x FILE"),
    b"Rar!\x1a\x07": ("RAR", "unrar x FILE"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d FILE"),
    b"\x1f\x9d": ("compress (.Z)", "gzip -d FILE"),
}
_BINARY = {
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"\x89HDF": "HDF5",
    b"SQLite format 3\0": "SQLite",
    b"\x93NUMPY": "NumPy",
    b"%PDF-": "PDF",
    b"FEA1": "Feather",
    **{b"\x80" + protocol: "pickle" for protocol in (b"\x02", b"\x03", b"\x04", b"\x05")},
}
_ARROW_FILE = b"ARROW1"
_ARROW_STREAM = b"\xff\xff\xff\xff"
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = re.compile(rb"(\.\./)*(/annex/objects|\.git/annex/objects)/")
LONGEST_MARK = 64
_CONTROLS = bytes({*range(0x1C)} - {0x01, *b"\t\n\v\f\r\x1b"})
"""Control characters that are rare in text; 0x01 and 0x1c to 0x1f may separate fields."""
_FEW_CONTROLS = 8  # so many may be in a short text, such as a Ctrl-Z at its end


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raise DataError when `start`, the first `LONGEST_MARK` bytes, belongs to no source."""
    begins = f"{path} starts with {start[:42]!r}"
    folder = quoted(path.parent)
    if start.startswith(_LFS):
        raise DataError(
            "A file is a Git LFS pointer: it holds the address of the content, not the content.",
            got=begins,
            fix=f"git -C {folder} lfs pull --include {shlex.quote(path.name)}\n"
            "or download it again with the client of the site that it comes from",
        )
    if _ANNEX.match(start):
        raise DataError(
            "A file is a git-annex pointer: it holds the name of the content, not the content.",
            got=begins,
            fix=f"git -C {folder} annex get {shlex.quote(path.name)}",
        )
    if start.startswith(b"PK\x03\x04"):
        fix = unpacked(path, "python3 -m zipfile -e")
        raise DataError("zip files cannot be read.", got=str(path), fix=fix)
    for magic, (name, command) in _ARCHIVES.items():
        if start.startswith(magic):
            fix = command.replace("FILE", quoted(path))
            fix += "\nand name the files that come out in data.path"
            raise DataError(f"{name} files cannot be read.", got=str(path), fix=fix)
    if start.startswith((_ARROW_FILE, _ARROW_STREAM)):
        raise _arrow(path, is_file=start.startswith(_ARROW_FILE))
    for magic, name in _BINARY.items():
        if start.startswith(magic):
            fix = "write its text as JSON Lines, a record a line, or as Parquet"
            fix += ", and name that file in data.path"
            raise DataError(f"{name} files cannot be read.", got=str(path), fix=fix)


def refuse_binary(path: Path, begin: bytes) -> None:
    """Raise DataError when `begin`, decompressed, is not text in any known encoding."""
    if begin[257:262] == b"ustar":
        fix = unpacked(path, "python3 -m tarfile -e")
        raise DataError("A tar archive cannot be read.", got=str(path), fix=fix)
    refuse_foreign(path, begin[:LONGEST_MARK])
    controls = len(begin) - len(begin.translate(None, _CONTROLS))
    if controls * 30 > max(len(begin), _FEW_CONTROLS * 30):
        raise DataError(
            "A file is binary: it holds no text.",
            got=f"{path}: {controls:,} of its first {len(begin):,} bytes are control characters, "
            f"and it starts with {begin[:8]!r}",
            fix="write its text as JSON Lines, a record a line, and name that file in data.path",
        )


def _arrow(path: Path, is_file: bool) -> DataError:
    opener = "open_file" if is_file else "open_stream"
    code = (
        "import sys,pyarrow,pyarrow.parquet as p; p.write_table("
        f"pyarrow.ipc.{opener}(sys.stdin.buffer.read()).read_all(), sys.stdout.buffer)"
    )
    return DataError(
        f"Arrow {'files' if is_file else 'streams'} cannot be read; Parquet can.",
        got=str(path),
        fix=filtered(path, "none", f"python3 -c {shlex.quote(code)}", ".parquet"),
    )


def arrow_folder(folder: Path, files: list[Path]) -> DataError:
    """The error for a folder of Arrow files, as `save_to_disk` of `datasets` writes them."""
    code = (
        "import sys,pyarrow,pyarrow.parquet as p; "
        'load = lambda f: (pyarrow.ipc.open_file if open(f,"rb").read(6) == b"ARROW1" '
        "else pyarrow.ipc.open_stream)(f); "
        '[p.write_table(load(f).read_all(), f"{sys.argv[1]}/{n:05d}.parquet") '
        "for n, f in enumerate(sys.argv[2:])]"
    )
    out = free_name(folder, "")
    names = " ".join(quoted(path) for path in files)
    if len(files) > 3:
        names = f"$(find {quoted(folder)} -name '*.arrow')"
    return DataError(
        "A folder of data.path holds Arrow files, which cannot be read; Parquet can.",
        got=f"{folder}: {len(files)} files, such as {files[0].name}",
        fix=f"mkdir {out} && python3 -c {shlex.quote(code)} {out} {names}\n{path_setting(out)}",
    )


def packed_parquet(path: Path, compression: str) -> DataError:
    """The error for a Parquet file inside a compressed one."""
    return DataError(
        f"A Parquet file in {compression} cannot be read: reading starts at its end.",
        got=str(path),
        fix=filtered(path, compression, "cat", ".parquet"),
    )
