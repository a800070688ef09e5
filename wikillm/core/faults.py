"""Distinguish errors of the machine and damaged files from bugs.

`as_refusal` converts an exception of the operating system or of a library to a `WikiLLMError`. The
command line and the end of a training run call it for every exception, so a full disk always exits
with 3. Code that knows more (the key that names the folder, the last complete checkpoint) raises
its own error.

Libraries in Rust and C++ report errors of the operating system as text. The patterns below match
the texts of safetensors, torch, pyarrow and Hugging Face. None of these libraries is imported.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

from wikillm.core.errors import CheckpointError, ConfigError, MachineError, WikiLLMError
from wikillm.core.files import nearest_existing
from wikillm.core.units import format_size

# (names of errno, what is wrong, fix)
_REASONS = (
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
    ("EROFS", "The file system is read-only.", "name a writable folder"),
    (
        "EACCES EPERM",
        "There is no permission for a file or folder.",
        "change its owner or mode, or name another folder",
    ),
    (
        "EEXIST EISDIR ENOTDIR",
        "A file is where a folder is needed, or the reverse.",
        "rename it, or name another path",
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
        "a smaller train.per_device_train_batch_size, train.sequence_length, data.workers or "
        "model; `wikillm plan` estimates the memory of a run",
    ),
    (
        "EAGAIN",
        "No more processes or threads can be started.",
        "raise ulimit -u or the container's limit (pids.max), or use fewer data.workers",
    ),
    (
        "EADDRINUSE EADDRNOTAVAIL",
        "The rendezvous port cannot be used.",
        "choose another port: --master_port N for deepspeed and torchrun, or MASTER_PORT=N",
    ),
    (
        "ECONNREFUSED ECONNRESET ECONNABORTED ETIMEDOUT EHOSTUNREACH EHOSTDOWN ENETUNREACH "
        "ENETDOWN EPIPE ENOTCONN",
        "The network does not respond.",
        "check the address, the network and the proxy settings, and start again",
    ),
)
_ERRNO = {
    getattr(errno, name): (what, fix) for names, what, fix in _REASONS for name in names.split()
}
_OTHER = ("The operating system refused an operation.", "name another path or file system")

_OF_THE_PROGRAM = frozenset(
    {errno.EBADF, errno.EFAULT, errno.ESPIPE, errno.ECHILD, errno.ESRCH, errno.EDOM, errno.ERANGE}
)
"""Only bugs cause these errors. EINVAL is a bug too, unless the error names a path: then the file
system refused the path."""

_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]|, code: -(\d+), name: E[A-Z]+")
"""An errno in a text, as Rust, Python and libuv (torch's TCPStore) print it."""
_TEXTS: tuple[tuple[str, int], ...] = (
    (r"No space left on device|Not enough free space to write", errno.ENOSPC),
    (r"Disk quota exceeded", errno.EDQUOT),
    (r"Read-only file system", errno.EROFS),
    (r"Too many open files", errno.EMFILE),
    (r"EADDRINUSE|[Aa]ddress already in use", errno.EADDRINUSE),
    (r"(?i)can't allocate memory|cannot allocate memory|out of memory", errno.ENOMEM),
    (r"can't start new thread", errno.EAGAIN),
    (r"Input/output error", errno.EIO),
    # The dynamic linker: a file system mounted with noexec, or no address space for a library.
    (r"failed to map segment from shared object: Operation not permitted", errno.EPERM),
    (r"failed to map segment from shared object|static TLS block", errno.ENOMEM),
    # torch's zip writer reports its position in the file, not the cause of a failed write.
    (r"PytorchStreamWriter failed|inline_container\.cc:\d+\] \. unexpected pos", errno.ENOSPC),
)
_LOADER_DIED = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")
_DAMAGED = re.compile(
    r"Error while deserializing header|PytorchStreamReader failed|Weights only load failed"
    r"|incomplete metadata"
)


_OF_ONE_FILE = frozenset(
    {
        errno.EFBIG, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENODEV, errno.ENOENT,
        errno.ENOTDIR, errno.ENXIO,
    }
)  # fmt: skip


def is_of_the_file(error: BaseException) -> bool:
    """Whether an error while a file was read shows that this file is missing or damaged.

    False for an error that other files would cause too: too many open files, no permission, no
    memory.
    """
    if not isinstance(error, OSError):
        return True
    number = error.errno
    if number is None:  # safetensors has the number in its text
        number = _errno_in(str(error))
    return number is None or number in _OF_ONE_FILE


def _errno_in(text: str) -> int | None:
    match = _NUMBER.search(text)
    return int(next(filter(None, match.groups()))) if match else None


def as_refusal(error: BaseException) -> WikiLLMError | None:
    """The WikiLLMError that explains an exception to a user; None if the exception is a bug."""
    for link in _causes(error):
        found = link if isinstance(link, WikiLLMError) else _from_machine(link)
        found = found or _from_deepspeed(link)
        if found is not None:
            return found
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its chain of `__cause__`, each exception once.

    `__context__` is not followed: a bug inside an `except OSError` would count as an error of the
    machine.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _from_deepspeed(error: BaseException) -> WikiLLMError | None:
    """The refusal of a value in the DeepSpeed JSON that only DeepSpeed's own start checks."""
    is_own_type = type(error).__name__ == "DeepSpeedConfigError"
    # DeepSpeed also raises these types, and pydantic's error is a ValueError.
    if not is_own_type and not isinstance(error, AssertionError | ValueError | TypeError):
        return None
    # The error counts only if the traceback goes through DeepSpeed's start or its configuration.
    places = [(Path(f.filename), f.name) for f in traceback.extract_tb(error.__traceback__)]
    is_start = any(
        "deepspeed" in path.parts and (name == "initialize" or path.stem.startswith("config"))
        for path, name in places
    )
    if not is_start:
        return None
    lines = [line.strip() for line in str(error).splitlines()[:3]]
    return ConfigError(
        "DeepSpeed does not start with the run's DeepSpeed JSON.",
        got=": ".join(lines) or "a check in its code failed",
        fix="change that key, or use a recipe of ds_configs/: --deepspeed zero2",
    )


def _from_machine(error: BaseException) -> WikiLLMError | None:
    text = str(error)
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        text = str(error.args[0][0][-1])  # the first of the files that copytree could not copy
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
    if _LOADER_DIED.search(text):
        return MachineError(
            "A data loader process of this run was killed.",
            got=line,
            fix="often by the kernel's out-of-memory killer: lower train.dataloader_num_workers; "
            "after a bus error, enlarge /dev/shm; then start again with --resume auto",
        )
    if (number := _errno_in(text)) is not None:
        return _of_number(number, line)
    for pattern, number in _TEXTS:
        if re.search(pattern, text):
            return _of_number(number, line)
    if _DAMAGED.search(text):
        return CheckpointError(
            "A file of weights or training state is damaged.",
            got=line,
            fix="use another checkpoint (--resume auto skips damaged ones), or copy the file again",
        )
    return None


def _of_number(number: int, message: str, paths: str = "") -> MachineError:
    """The error for an errno. An errno outside the table keeps the operating system's message."""
    what, fix = _ERRNO.get(number, _OTHER)
    got = f"{paths}: {message}" if paths else message
    if paths and number in (errno.ENOSPC, errno.EDQUOT):
        got += _free_room(paths)
    return MachineError(what, got=got or None, fix=fix)


def _paths(error: OSError) -> str:
    named = (error.filename, error.filename2)
    return " -> ".join(str(path) for path in named if isinstance(path, str | os.PathLike))


def _free_room(path: str) -> str:
    """The free space on the disk of `path`, as text; "" if it cannot be read."""
    try:
        folder = nearest_existing(Path(path))
        return f"; {format_size(shutil.disk_usage(folder).free)} free on {folder}"
    except OSError:
        return ""


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 300 else line[:300] + " ..."
