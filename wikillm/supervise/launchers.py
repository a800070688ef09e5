"""The processes that started this rank, and a thread that notices when one of them is gone.

`deepspeed` starts a second launcher, which starts the ranks. Killed, each leaves its children behind, and nobody would
collect the ranks' exit codes or end them. PR_SET_PDEATHSIG does not help: it knows the direct parent alone, and fires
when the thread that forked ends. So each rank looks at the processes above it, once a second.
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
LAUNCHERS = frozenset(
    {
        "accelerate", "accelerate-launch", "accelerate.commands.launch", "deepspeed", "deepspeed.pt", "ds",
        "deepspeed.launcher.launch", "deepspeed.launcher.runner", "mpiexec", "mpirun", "orterun", "prterun", "srun",
        "torch.distributed.launch", "torch.distributed.run", "torchrun", "wikillm",
    }
)  # fmt: skip
"""Programs and modules that wait for the launcher below them."""
SESSIONS = frozenset(
    {
        "ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "login", "nohup", "screen", "script", "setsid", "sh",
        "sshd", "sshd-session", "su", "sudo", "systemd", "tcsh", "tini", "tmux", "xonsh", "zsh",
    }
)  # fmt: skip
"""A rank started by hand from one of these goes on when it ends: that is what nohup and `&` are for."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """`program` is the script or module that the process runs."""

    program: str
    process: Process


def launchers_of(pid: int) -> tuple[Launcher, ...]:
    """From the process `pid` upwards: what passed its rank on, what gave it, and the launchers above that.

    The giver is the nearest process above without RANK in its environment. Empty where it is a shell or a session.
    """
    found: list[Launcher] = []
    above, is_given = pid, False
    try:
        while (above := parent_of(above)) > 1:
            program = program_of(above)
            if is_given and program not in LAUNCHERS:
                break
            if not is_given and not _has_rank(above):
                if program in SESSIONS:
                    return ()
                is_given = True
            found.append(Launcher(program, Process.here(above)))
    except (OSError, IndexError, ValueError):  # it ended while we looked
        pass
    return tuple(found)


def watch_launchers(
    on_gone: Callable[[str], None], environ: Mapping[str, str] = os.environ
) -> None:
    """Call `on_gone(what)` in a thread, once, when a launcher of this rank has ended. Does nothing without a launcher."""
    found = launchers_of(os.getpid()) if "RANK" in environ else ()
    if found:
        threading.Thread(
            target=_watch, args=(found, on_gone), name="launchers", daemon=True
        ).start()


def _watch(found: tuple[Launcher, ...], on_gone: Callable[[str], None]) -> None:
    while True:
        for launcher in found:
            if not launcher.process.is_alive():
                on_gone(f"the end of its launcher ({launcher.program}, pid {launcher.process.pid})")
                return
        time.sleep(POLL_SECONDS)


def program_of(pid: int) -> str:
    """`torchrun` for `python3 -u /usr/bin/torchrun ...`, `deepspeed.launcher.launch` for `python -m ...`."""
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
    """Was the process started with RANK set? Not for one of another user, which we may not look into."""
    try:
        return any(
            entry.startswith(b"RANK=")
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        )
    except PermissionError:
        return False
