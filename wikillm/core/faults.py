"""Errors of the machine and of damaged files, as opposed to mistakes in the program.

`as_refusal` turns what the operating system or a library raised into the `WikiLLMError` that it means. The command
line and the end of a training run ask it for every error, so that a full disk exits with 3 wherever it is met. Where
more is known (which key names the folder, which checkpoint is still complete) the place itself raises the error.
Libraries in Rust and C++ report the operating system's errors as text; the patterns below are those of safetensors,
torch, pyarrow and Hugging Face. It imports none of them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from wikillm.core.errors import CheckpointError, MachineError, WikiLLMError
from wikillm.core.files import nearest_existing
from wikillm.core.units import format_size

_NO_ROOM = (
    "There is no room left on the disk.",
    "free some room, or name a folder on another disk (run.dir, data.store, data.cache, TMPDIR)",
)
_OVER_QUOTA = ("The disk quota is used up.", "free some room, or ask for a larger quota")
_DENIED = ("A file or folder may not be used.", "change its owner or mode, or name another folder")
_NETWORK = (
    "The network does not answer.",
    "check the address, the network and the proxy settings, and start again",
)
_PORT = (
    "The port where the ranks meet cannot be used.",
    "choose another one: `--master_port N` of deepspeed and torchrun, or MASTER_PORT=N",
)
_MEMORY = (
    "There is not enough memory.",
    "make it smaller: train.per_device_train_batch_size, train.sequence_length, data.workers, the model; "
    "`wikillm plan` estimates what a run needs",
)
_WRONG_KIND = (
    "There is a file where a folder is needed, or the reverse.",
    "move it, or name another path",
)
_READING = (
    "The disk reported an error.",
    "check the disk (dmesg, smartctl) or the network mount, and start again",
)
_NAME = ("A path cannot be used.", "name a shorter path, or one without circular links")
_FILES = ("Too many files are open.", "ulimit -n 65536, or fewer data.workers")
_PROCESSES = (
    "No further process or thread can be started.",
    "ulimit -u, or the limit of the container (pids.max); fewer data.workers",
)
_ERRNO: dict[int, tuple[str, str]] = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _OVER_QUOTA,
    errno.EFBIG: (
        "A file would be larger than is allowed.",
        "ulimit -f unlimited, or another file system",
    ),
    errno.EROFS: ("The file system is read-only.", "name a folder that can be written"),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EBUSY: ("A file or folder is in use.", "close what uses it, and start again"),
    errno.ETXTBSY: ("A file or folder is in use.", "close what uses it, and start again"),
    errno.ENOENT: ("A file or folder is not there.", "restore it, or name another path"),
    errno.ESTALE: ("A network folder has gone away.", "mount it again, and start again"),
    errno.ENOTDIR: _WRONG_KIND,
    errno.EISDIR: _WRONG_KIND,
    errno.EEXIST: _WRONG_KIND,
    errno.ENOTEMPTY: ("A folder is not empty.", "move what is in it, or name another path"),
    errno.EXDEV: (
        "A file cannot be moved to another file system.",
        "name folders on one file system",
    ),
    errno.ELOOP: _NAME,
    errno.ENAMETOOLONG: _NAME,
    errno.ENOTSUP: ("The file system lacks an operation.", "name a folder on another file system"),
    errno.ENOSYS: ("The file system lacks an operation.", "name a folder on another file system"),
    errno.ENOLCK: ("The file system has no locks left.", "name a folder on another file system"),
    errno.EIO: _READING,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: _PROCESSES,
    errno.ENOEXEC: ("A program cannot be run.", "install it for this machine"),
    errno.EADDRINUSE: _PORT,
    errno.EADDRNOTAVAIL: _PORT,
}
_NETWORK_NUMBERS = frozenset(
    {
        errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN,
        errno.ENETUNREACH, errno.ENETDOWN, errno.EPIPE, errno.ENOTCONN,
    }
)  # fmt: skip

_OF_THE_PROGRAM = frozenset(
    {errno.EBADF, errno.EFAULT, errno.ESPIPE, errno.ECHILD, errno.ESRCH, errno.EDOM, errno.ERANGE}
)
"""Only a mistake in the program leads to these; EINVAL too, unless a path is named, whose file system refused."""

_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]|, code: -(\d+), name: E[A-Z]+")
"""Rust's, Python's, and libuv's (torch's TCPStore) ways to write an errno into a text."""
_SAID: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"No space left on device|Not enough free space to write"), errno.ENOSPC),
    (re.compile(r"Disk quota exceeded"), errno.EDQUOT),
    (re.compile(r"Read-only file system"), errno.EROFS),
    (re.compile(r"Too many open files"), errno.EMFILE),
    (re.compile(r"EADDRINUSE|[Aa]ddress already in use"), errno.EADDRINUSE),
    (
        re.compile(r"can't allocate memory|[Cc]annot allocate memory|out of memory", re.IGNORECASE),
        errno.ENOMEM,
    ),
    (re.compile(r"can't start new thread"), errno.EAGAIN),
    (re.compile(r"Input/output error"), errno.EIO),
    # torch's zip writer reports its position in the file, not why no more was written.
    (
        re.compile(r"PytorchStreamWriter failed|inline_container\.cc:\d+\] \. unexpected pos"),
        errno.ENOSPC,
    ),
)
_DAMAGED = re.compile(
    r"Error while deserializing header|PytorchStreamReader failed|Weights only load failed|incomplete metadata"
)


def as_refusal(error: BaseException) -> WikiLLMError | None:
    """What an error means to a user; None for what only a mistake in the program explains."""
    for link in _chain(error):
        if isinstance(link, WikiLLMError):
            return link
        found = _from_machine(link)
        if found is not None:
            return found
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, each once.

    Not what was being handled (`__context__`): a mistake inside an `except OSError` would pass for the machine's.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _from_machine(error: BaseException) -> WikiLLMError | None:
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        paths = _paths(error)
        if error.errno in _OF_THE_PROGRAM or (error.errno == errno.EINVAL and not paths):
            return None
        return _of_number(error.errno, paths, error.strerror or text)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _of_number(errno.ENOMEM, "", text.partition("\n")[0])
    if isinstance(error, RecursionError):
        return None
    match = _NUMBER.search(text)
    if match:
        return _of_number(int(next(filter(None, match.groups()))), "", _first_line(text))
    for pattern, number in _SAID:
        if pattern.search(text):
            return _of_number(number, "", _first_line(text))
    if _DAMAGED.search(text):
        return CheckpointError(
            "A file of weights or training state is damaged.",
            got=_first_line(text),
            fix="take another checkpoint (--resume auto passes damaged ones over), or copy the file again",
        )
    return None


def _of_number(number: int, paths: str, said: str) -> MachineError:
    """The refusal for an errno; an unknown one keeps the operating system's own words."""
    if number in _NETWORK_NUMBERS:
        what, fix = _NETWORK
    else:
        what, fix = _ERRNO.get(
            number,
            ("The operating system refused an operation.", "check the path and its file system"),
        )
    got = f"{paths}: {said}" if paths else said
    if number in (errno.ENOSPC, errno.EDQUOT):
        got += _room(paths)
    return MachineError(what, got=got or None, fix=fix)


def _paths(error: OSError) -> str:
    named = [
        str(path)
        for path in (error.filename, error.filename2)
        if isinstance(path, str | os.PathLike)
    ]
    return " -> ".join(named)


def _room(path: str) -> str:
    """How much is free where the file lies, where that can be asked."""
    if not path:
        return ""
    try:
        folder = nearest_existing(Path(path))
        return f"; {format_size(shutil.disk_usage(folder).free)} free on {folder}"
    except OSError:
        return ""


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 300 else line[:300] + " ..."
