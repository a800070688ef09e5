"""Files that are either complete or not there: atomic writes, durable renames, digests.

A file or folder is staged beside its final name, fsynced, then renamed, and the parent folder is fsynced:
after a crash at any moment a reader sees the old state or the new one, never half of either.
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
NETWORK_KINDS = (
    "nfs",
    "lustre",
    "ceph",
    "gpfs",
    "beegfs",
    "cifs",
    "smb",
    "fuse",
    "glusterfs",
    "9p",
)
"""How the names of network file systems start."""


def fsync_path(path: Path) -> None:
    """Push a file's or a folder's entries to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one.

    What fails (the disk is full) leaves nothing behind, so that it takes no room from the next try. Raises OSError.
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
        # A failed write knows no path; the user knows the final one, not the staged one.
        raise type(error)(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """`value` as indented UTF-8 JSON, written atomically. NaN and infinity are refused: they are not JSON."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one folder and fsync that folder, so that the new name survives a crash."""
    os.replace(source, target)
    fsync_path(target.parent)


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hex sha256 of a file, read in 4 MiB pieces; `on_bytes` hears the size of each piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
    return digest.hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """All regular files below `folder`, sorted by their relative path: the same order on every machine."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def nearest_existing(path: Path) -> Path:
    """The deepest existing parent of a path that does not exist: what an error about it should name."""
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path("/")


def file_system_kind(path: Path) -> str:
    """The type of the file system below `path`, as /proc/mounts names it; "" when that cannot be read."""
    best, kind, wanted = "", "", str(path.resolve())
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, mount, found, *_ = line.split()
        if (wanted == mount or wanted.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(
            best
        ):
            best, kind = mount, found
    return kind
