"""Finds the launchers of this rank, and notices in a thread when one of them ends.

`deepspeed` starts a second launcher, which starts the ranks. If a launcher is killed, its children
keep running, and nothing would collect the ranks' exit codes or end the ranks. PR_SET_PDEATHSIG
covers only the direct parent, and sends its signal when the thread that forked ends. So each rank
polls the processes above it once a second.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wikillm.supervise.records import Process, parent_of

POLL_SECONDS = 1.0
LAUNCHERS = frozenset((
    "accelerate", "accelerate-launch", "accelerate.commands.launch", "deepspeed", "deepspeed.pt",
    "deepspeed.launcher.launch", "deepspeed.launcher.runner", "ds", "mpiexec", "mpirun", "orterun",
    "prterun", "srun", "torch.distributed.launch", "torch.distributed.run", "torchrun", "wikillm",
))  # fmt: skip
"""Programs and modules that wait for the launcher below them."""
SESSIONS = frozenset((
    "ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "login", "nohup", "screen", "script",
    "setsid", "sh", "sshd", "sshd-session", "su", "sudo", "systemd", "tcsh", "tini", "tmux",
    "xonsh", "zsh",
))  # fmt: skip
"""A rank that was started by hand from one of these programs may outlive it (nohup, `&`)."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """A process above a rank; `program` is the script or module that it runs."""

    program: str
    process: Process


def launchers_of(pid: int, *, is_rank: bool = True) -> tuple[Launcher, ...]:
    """The launchers above the process `pid`, the nearest first.

    The launcher that set RANK is the nearest process above that has no RANK in its own environment.
    If that process is a shell or a session, the rank was started by hand and has no launcher. Above
    the launcher that set RANK, and above a single process without RANK (`is_rank=False`), only the
    programs in LAUNCHERS count.
    """
    found: list[Launcher] = []
    above = pid
    has_set_rank = not is_rank  # the launcher that set RANK is among `found`
    try:
        while (above := parent_of(above)) > 1:
            program = program_of(above)
            if has_set_rank and program not in LAUNCHERS:
                break
            if not has_set_rank and not _has_rank(above):
                if program in SESSIONS:
                    return ()
                has_set_rank = True
            found.append(Launcher(program, Process.here(above)))
    except (OSError, IndexError, ValueError):  # a process ended meanwhile
        pass
    return tuple(found)


def watch_launchers(
    on_gone: Callable[[str], None], environ: Mapping[str, str] = os.environ
) -> None:
    """Start a thread that calls `on_gone(reason)` once a launcher of this rank has ended."""
    found = launchers_of(os.getpid(), is_rank="RANK" in environ)
    if found:
        args = (found, on_gone)
        threading.Thread(target=_watch, args=args, name="launchers", daemon=True).start()


def _watch(launchers: tuple[Launcher, ...], on_gone: Callable[[str], None]) -> None:
    while True:
        for launcher in launchers:
            if not launcher.process.is_alive():
                on_gone(f"the end of its launcher ({launcher.program}, pid {launcher.process.pid})")
                return
        time.sleep(POLL_SECONDS)


def program_of(pid: int) -> str:
    """`torchrun` for `python3 -u /usr/bin/torchrun ...`, the module for `python -m ...`."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    name = _name(words[0])
    if not name.startswith(("python", "pypy")):
        return name
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            return next(rest, name)
        if word in ("-X", "-W"):
            next(rest, None)
        elif not word.startswith("-"):
            return _name(word) or name
    return name


def _name(word: str) -> str:
    """`bash` for `-bash` and `/bin/bash`, `sshd` for `sshd: user@pts/0`."""
    return Path(word.partition(":")[0].lstrip("-").strip() or word).name


def _has_rank(pid: int) -> bool:
    """Whether the process has RANK in its environment; False for another user's process."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except PermissionError:
        return False
    return any(entry.startswith(b"RANK=") for entry in environment.split(b"\0"))
