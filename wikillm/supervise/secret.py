"""The secret of a run, which a process must know to take part in the run's supervision.

RUN/.secret has 32 random bytes in hexadecimal and is readable only by its owner. The first rank
creates the file. All nodes share the run directory, so the secret reaches every rank under any
launcher, without a command line. WIKILLM_RUN_SECRET in the environment has precedence; then all
ranks need the same value. A run over several nodes always has a secret.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from wikillm.core.errors import ConfigError, MachineError

VARIABLE = "WIKILLM_RUN_SECRET"
FILE_NAME = ".secret"
_MIN_CHARACTERS = 16
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
"""Errors of file systems without hard links."""
_WHOLE = re.compile(rb"[0-9a-f]{64}\n")
_READ_SECONDS = 10.0  # for another rank to finish writing the file


def run_secret(run: Path, environ: Mapping[str, str] = os.environ) -> bytes:
    """The secret of the run in `run`, created when there is none. (all ranks)

    Raises:
        ConfigError: WIKILLM_RUN_SECRET is too short to be a secret.
        MachineError: the file cannot be read or written, or others can read it.
    """
    given = environ.get(VARIABLE)
    if given is not None:
        if len(given) < _MIN_CHARACTERS:
            raise ConfigError(
                f"{VARIABLE} is too short to be a secret.",
                got=f"{len(given)} characters",
                fix=f"export {VARIABLE}=$(openssl rand -hex 32), the same on every node, "
                "or unset it",
            )
        return given.encode("utf-8", "surrogateescape")
    path = run / FILE_NAME
    try:
        if not path.exists():
            _make(path)
        return _read(path)
    except OSError as error:
        raise MachineError(
            "The secret that the ranks of this run share cannot be stored.",
            got=f"{path} on {socket.gethostname()}: {error.strerror or error}",
            fix="name a folder that all nodes can write: run.dir=FOLDER\n"
            f"or export {VARIABLE}, the same on every node",
        ) from None


def _make(path: Path) -> None:
    """Create the file atomically, never replacing another rank's file. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = secrets.token_hex(32).encode() + b"\n"
    staged = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    _write(staged, content)
    try:
        # Unlike a rename, a link fails where the name is taken, on network file systems too.
        os.link(staged, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with suppress(FileExistsError):
            _write(path, content)
    finally:
        staged.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    """Raises OSError, or MachineError for a file that is not a secret."""
    deadline = time.monotonic() + _READ_SECONDS
    while True:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            content = file.read(100)
        if stat.S_ISREG(about.st_mode) and about.st_mode & 0o077:
            raise MachineError(
                f"Others can read the secret of this run, {path}.",
                got=f"mode {stat.S_IMODE(about.st_mode):o}, not 600",
                fix=f"rm {path}\nor, where the file system stores no modes, export {VARIABLE}, "
                "the same on every node",
            )
        # Root can read the file of a user, who could then forge messages. On a folder whose server
        # maps root to another user, the folder's owner is that user too.
        if about.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
            raise MachineError(
                f"The secret of this run, {path}, belongs to another user.",
                got=f"uid {about.st_uid}, not {os.geteuid()}",
                fix=f"rm {path}",
            )
        if _WHOLE.fullmatch(content):
            return bytes.fromhex(content.decode())
        if time.monotonic() > deadline:
            raise MachineError(
                f"{path} is not the secret of a run.",
                got=f"{len(content)} bytes that are not 64 hexadecimal digits and a line break",
                fix=f"rm {path}",
            )
        time.sleep(0.1)
