"""Argument lists of ssh and rsync. The host stands behind `--`, and never asks for a password."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from wikillm.remote.hosts import bracketed_host
from wikillm.remote.private import PRIVATE

_ALIVE = (
    "-o",
    "ServerAliveInterval=10",
    "-o",
    "ServerAliveCountMax=3",
)  # a cut link ends the connection after 30 s
OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *_ALIVE)


def ssh_argv(destination: str, command: str, *, terminal: bool = False) -> tuple[str, ...]:
    """`command` is shell text for the other side: build it with `shlex.join`, never from raw words.

    With `terminal` the remote job ends when the connection does.
    """
    return ("ssh", *OPTIONS, *(("-tt",) if terminal else ()), "--", destination, command)


def rsync_argv(
    source: str, destination: str, folder: str, excluded: Sequence[str]
) -> tuple[str, ...]:
    """Copy the content of `source` into `folder` on the other side; what is there and not here stays.

    Neither what .gitignore names, nor keys and passwords.
    """
    code = ("--include", "id_*.py")
    filters = [
        *code,
        *(word for pattern in (*excluded, *PRIVATE) for word in ("--exclude", pattern)),
    ]
    user, at, host = destination.rpartition("@")
    shell = shlex.join(("ssh", *OPTIONS))
    # -s: the folder is not read by a shell on the other side
    return (
        "rsync",
        "-azs",
        "--filter=:- .gitignore",
        *filters,
        "-e",
        shell,
        "--",
        f"{source}/",
        f"{user}{at}{bracketed_host(host)}:{folder}/",
    )
