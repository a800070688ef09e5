"""Files that are either complete or absent: atomic writes, durable renames, digests.

A file or folder is staged beside its final name, fsynced, then renamed, and the parent folder is
fsynced. After a crash at any moment a reader sees the old state or the new one, never half of
either.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

STAGING_SUFFIX = ".staging"
_NETWORK = ("nfs", "lustre", "ceph", "gpfs", "beegfs", "cifs", "smb", "fuse", "glusterfs", "9p")
"""Prefixes of the names of network file systems in /proc/mounts."""


def fsync_path(path: Path) -> None:
    """Write a file's content, or a folder's entries, through to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one.

    A write that fails (the disk is full) removes what it staged. Raises OSError.
    """
    data = content.encode() if isinstance(content, str) else content
    staged = path.with_name(f".{path.name}.{os.getpid()}{STAGING_SUFFIX}")
    try:
        with open(staged, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename_durably(staged, path)
    except OSError as error:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
        if error.errno is None:
            raise
        # A failed write has no path; the user knows the final one, not the staged one.
        raise type(error)(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """Write indented UTF-8 JSON atomically. Raises ValueError for NaN and infinity."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when the file is missing, damaged, or holds no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one folder and fsync that folder, so that the new name survives a crash."""
    os.replace(source, target)
    fsync_path(target.parent)


def cut_torn_line(path: Path) -> int:
    """Truncate a file after its last newline; the number of bytes that were cut off."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return len(data) - end


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hex sha256 of a file, read in 4 MiB pieces; `on_bytes` gets the size of each piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
    return digest.hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """All regular files below `folder`, sorted: the same order on every machine."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def nearest_existing(path: Path) -> Path:
    """The deepest existing parent of a path that does not exist, to name in an error."""
    return next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))


def file_system_kind(path: Path) -> str:
    """The file system of `path` as /proc/mounts names it; "" when that cannot be read."""
    wanted = str(path.resolve())
    deepest = ""
    kind = ""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, mount, found, *_ = line.split()
        is_above = wanted == mount or wanted.startswith(mount.rstrip("/") + "/")
        if is_above and len(mount) >= len(deepest):
            deepest = mount
            kind = found
    return kind


def is_network_kind(kind: str) -> bool:
    """Whether a `file_system_kind` is a network file system; unknown ones count as local."""
    return kind.startswith(_NETWORK)
