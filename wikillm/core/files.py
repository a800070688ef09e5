"""Files that are either complete or absent: atomic writes, durable renames, digests.

A file or folder is staged next to its final name, fsynced, then renamed, and the parent folder is
fsynced. After a crash at any moment, a reader sees the complete old or the complete new state.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

STAGING_SUFFIX = ".staging"
MAX_BYTES = 1 << 30
"""Bytes: the default limit of a file that is read as a whole."""
_NETWORK = ("nfs", "lustre", "ceph", "gpfs", "beegfs", "cifs", "smb", "fuse", "glusterfs", "9p")
"""Prefixes of the names of network file systems in /proc/mounts."""


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path`, such that a crash leaves the old file or the new file.

    If the write fails (as on a full disk), the staged file is removed. Raises OSError.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
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
        # A failed write's error has no path. Name the final path, which the user knows.
        raise type(error)(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """Write indented UTF-8 JSON atomically. Raises ValueError for NaN and infinity."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for any other file.

    Other users may write to the folder. Reading a pipe could block forever, and a device may have
    no end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_regular(path: Path, *, max_bytes: int | None = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `max_bytes` (None: any size). Raises OSError."""
    with open_regular(path) as file:
        if max_bytes is not None and os.fstat(file.fileno()).st_size > max_bytes:
            raise OSError(errno.EFBIG, "too large for a record", str(path))
        return file.read()


def read_tail(path: Path, size: int) -> bytes:
    """The last `size` bytes of a regular file, or all of a shorter one. Raises OSError."""
    with open_regular(path) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - size))
        return file.read()


def read_small(path: Path) -> str:
    """The stripped text of a file of /proc or /sys; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if the file is missing or damaged, or holds no object."""
    try:
        found = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def rename_durably(source: Path, target: Path) -> None:
    """Rename within a folder and fsync the folder, so that the new name survives a crash."""
    os.replace(source, target)
    fsync_path(target.parent)


def cut_torn_line(path: Path) -> int:
    """Truncate a file after its last newline. Returns the number of bytes removed."""
    if not path.is_file():  # missing, or a pipe or device, which has no end
        return 0
    data = read_regular(path)
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
    """All regular files below `folder`, sorted, so that the order is equal on every machine."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def nearest_existing(path: Path) -> Path:
    """The deepest existing parent folder of a path, for error messages and disk usage."""
    return next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))


def file_system_kind(path: Path) -> str:
    """The type of the file system of `path`, from /proc/mounts; "" if it cannot be read."""
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
    """Whether a `file_system_kind` is a network file system; unknown types count as local."""
    return kind.startswith(_NETWORK)
