"""Argument lists of ssh and rsync. The host follows `--`, and ssh never asks for a password."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from wikillm.remote.hosts import bracketed_host
from wikillm.remote.private_files import PRIVATE, in_any_case

_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=10",  # a cut link ends the connection after 30 s
    "ServerAliveCountMax=3",
)
OPTIONS = tuple(word for option in _OPTIONS for word in ("-o", option))


def ssh_argv(destination: str, command: str, *, terminal: bool = False) -> tuple[str, ...]:
    """ssh that runs `command`, shell text built with `shlex.join`, on the other machine.

    With `terminal` the remote job ends together with the connection.
    """
    return ("ssh", *OPTIONS, *(("-tt",) if terminal else ()), "--", destination, command)


def rsync_argv(
    source: str, destination: str, folder: str, excluded: Sequence[str]
) -> tuple[str, ...]:
    """rsync that copies the content of `source` into `folder` on the other machine.

    It deletes nothing there. It leaves out keys, passwords and files that .gitignore names.
    """
    filters = ["--include", "id_*.py"]
    for pattern in (*excluded, *map(in_any_case, PRIVATE)):
        filters += ["--exclude", pattern]
    user, at, host = destination.rpartition("@")
    shell = shlex.join(("ssh", *OPTIONS))
    target = f"{user}{at}{bracketed_host(host)}:{folder}/"
    # -s: no shell on the other machine interprets the folder
    ignored = "--filter=:- .gitignore"
    return ("rsync", "-azs", ignored, *filters, "-e", shell, "--", f"{source}/", target)
