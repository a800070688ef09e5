"""Errors of the machine and of damaged files, as opposed to mistakes in the program.

`as_refusal` turns what the operating system or a library raised into the `WikiLLMError` that it
means. The command line and the end of a training run call it for every error, so a full disk exits
with 3 wherever it happens. Code that knows more (which key names the folder, which checkpoint is
still complete) raises its own error.

Libraries in Rust and C++ report errors of the operating system as text; the patterns below are
those of safetensors, torch, pyarrow and Hugging Face, none of which is imported.
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

# (names of errno, what is wrong, what to do)
_ANSWERS = (
    (
        "ENOSPC",
        "There is no room left on the disk.",
        "free some room, or use a folder on another disk (run.dir, data.store, data.cache, TMPDIR)",
    ),
    ("EDQUOT", "The disk quota is used up.", "free some room, or ask for a larger quota"),
    (
        "EFBIG",
        "A file would be larger than is allowed.",
        "ulimit -f unlimited, or another file system",
    ),
    ("EROFS", "The file system is read-only.", "name a folder that can be written"),
    (
        "EACCES EPERM",
        "A file or folder may not be used.",
        "change its owner or mode, or name another folder",
    ),
    ("ENOENT", "A file or folder does not exist.", "restore it, or name another path"),
    ("ESTALE", "A network folder is no longer available.", "mount it again, and start again"),
    (
        "EIO",
        "The disk reported an error.",
        "check the disk (dmesg, smartctl) or the network mount, and start again",
    ),
    ("EMFILE ENFILE", "Too many files are open.", "ulimit -n 65536, or fewer data.workers"),
    (
        "ENOMEM",
        "There is not enough memory.",
        "make it smaller: train.per_device_train_batch_size, train.sequence_length, data.workers, "
        "the model; `wikillm plan` estimates what a run needs",
    ),
    (
        "EAGAIN",
        "No further process or thread can be started.",
        "ulimit -u, or the limit of the container (pids.max); fewer data.workers",
    ),
    (
        "EADDRINUSE EADDRNOTAVAIL",
        "The rendezvous port cannot be used.",
        "choose another one: `--master_port N` of deepspeed and torchrun, or MASTER_PORT=N",
    ),
    (
        "ECONNREFUSED ECONNRESET ECONNABORTED ETIMEDOUT EHOSTUNREACH EHOSTDOWN ENETUNREACH "
        "ENETDOWN EPIPE ENOTCONN",
        "The network does not answer.",
        "check the address, the network and the proxy settings, and start again",
    ),
)
_ERRNO = {
    getattr(errno, name): (what, fix) for names, what, fix in _ANSWERS for name in names.split()
}
_OTHER = ("The operating system refused an operation.", "name another path or file system")

_OF_THE_PROGRAM = frozenset(
    {errno.EBADF, errno.EFAULT, errno.ESPIPE, errno.ECHILD, errno.ESRCH, errno.EDOM, errno.ERANGE}
)
"""Only mistakes in the program cause these. So does EINVAL, unless a path is named: then the file
system refused it."""

_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]|, code: -(\d+), name: E[A-Z]+")
"""An errno in a text, as Rust, Python and libuv (torch's TCPStore) write it."""
_TEXTS: tuple[tuple[str, int], ...] = (
    (r"No space left on device|Not enough free space to write", errno.ENOSPC),
    (r"Disk quota exceeded", errno.EDQUOT),
    (r"Read-only file system", errno.EROFS),
    (r"Too many open files", errno.EMFILE),
    (r"EADDRINUSE|[Aa]ddress already in use", errno.EADDRINUSE),
    (r"(?i)can't allocate memory|cannot allocate memory|out of memory", errno.ENOMEM),
    (r"can't start new thread", errno.EAGAIN),
    (r"Input/output error", errno.EIO),
    # torch's zip writer reports its position in the file, not why no more was written.
    (r"PytorchStreamWriter failed|inline_container\.cc:\d+\] \. unexpected pos", errno.ENOSPC),
)
_DAMAGED = re.compile(
    r"Error while deserializing header|PytorchStreamReader failed|Weights only load failed"
    r"|incomplete metadata"
)


def as_refusal(error: BaseException) -> WikiLLMError | None:
    """What an error means to a user; None for what only a mistake in the program explains."""
    for link in _causes(error):
        found = link if isinstance(link, WikiLLMError) else _from_machine(link)
        if found is not None:
            return found
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, each once.

    Not `__context__`: a mistake inside an `except OSError` would pass for an error of the machine.
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
        return _of_number(error.errno, error.strerror or text, paths)
    if isinstance(error, RecursionError):
        return None
    line = _first_line(text)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _of_number(errno.ENOMEM, line)
    if match := _NUMBER.search(text):
        return _of_number(int(next(filter(None, match.groups()))), line)
    for pattern, number in _TEXTS:
        if re.search(pattern, text):
            return _of_number(number, line)
    if _DAMAGED.search(text):
        return CheckpointError(
            "A file of weights or training state is damaged.",
            got=line,
            fix="take another checkpoint (--resume auto skips damaged ones), or copy the file",
        )
    return None


def _of_number(number: int, message: str, paths: str = "") -> MachineError:
    """The refusal for an errno; others keep the operating system's own words."""
    what, fix = _ERRNO.get(number, _OTHER)
    got = f"{paths}: {message}" if paths else message
    if paths and number in (errno.ENOSPC, errno.EDQUOT):
        got += _free_room(paths)
    return MachineError(what, got=got or None, fix=fix)


def _paths(error: OSError) -> str:
    named = (error.filename, error.filename2)
    return " -> ".join(str(path) for path in named if isinstance(path, str | os.PathLike))


def _free_room(path: str) -> str:
    """How much is free on the disk of `path`, where that can be read."""
    try:
        folder = nearest_existing(Path(path))
        return f"; {format_size(shutil.disk_usage(folder).free)} free on {folder}"
    except OSError:
        return ""


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 300 else line[:300] + " ..."
