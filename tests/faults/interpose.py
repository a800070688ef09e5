"""The preloaded counter of file calls (interpose.c): build it, arm it in a rank, read its log."""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("interpose.c")


def build(folder: Path) -> Path:
    """Compile the library into `folder`. Raises CalledProcessError without a C compiler."""
    library = folder / "interpose.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def preload(library: Path) -> None:
    """Preload it into all processes started from now on. Call before the fork server starts."""
    os.environ["LD_PRELOAD"] = str(library)


def has_compiler() -> bool:
    return shutil.which("cc") is not None


def arm(folder: str, at: int, *, half: bool, log: str) -> None:
    """From now on count this process's calls below `folder`; die before number `at`.

    `half`: die in the middle of it, if it is a write. A negative `at` only counts.
    """
    ctypes.CDLL(None).faults_arm(folder.encode(), ctypes.c_long(at), int(half), log.encode())


def seen() -> int:
    """Calls counted so far."""
    return int(ctypes.CDLL(None).faults_seen())


@dataclass(frozen=True, slots=True)
class Call:
    at: int
    name: str
    path: str
    other: str


def read_calls(logs: Iterable[Path]) -> list[Call]:
    """The calls of all ranks, in the order of their times."""
    calls = []
    for log in logs:
        for line in log.read_text().splitlines():
            at, _, name, path, other = line.split("\t")
            calls.append(Call(int(at), name, path, other))
    return sorted(calls, key=lambda call: call.at)


def lose_power(calls: list[Call], rng: random.Random, *, newest_only: bool) -> list[str]:
    """Take from the disk what a machine without power might lose: all that was not synced.

    A file written since its last fsync keeps its size and loses its content, or loses both. A
    rename whose folder was not synced afterwards may be undone. Each with one chance in two.

    `newest_only`: nothing of earlier checkpoints, which the system had time to write back.
    """
    unsynced: dict[str, None] = {}
    renames: list[Call] = []
    for call in calls:
        if "write" in call.name or call.name == "create":
            unsynced[call.path] = None
        elif "sync" in call.name:
            unsynced.pop(call.path, None)
            renames = [each for each in renames if str(Path(each.other).parent) != call.path]
        elif call.name == "rename":
            renames.append(call)
            moved = {path: _moved(path, call.path, call.other) for path in unsynced}
            unsynced = dict.fromkeys(moved.values())
    lost = []
    if newest_only:
        newest = max(map(_step, unsynced), default=0)
        unsynced = {path: None for path in unsynced if _step(path) == newest}
    for name in unsynced:
        path = Path(name)
        if path.is_file() and rng.random() < 0.5:
            kept = path.stat().st_size if rng.random() < 0.5 else 0
            path.write_bytes(bytes(kept))
            lost.append(f"content of {path.name}")
    for call in reversed(renames):
        if Path(call.other).exists() and not Path(call.path).exists() and rng.random() < 0.5:
            os.rename(call.other, call.path)
            lost.append(f"rename to {Path(call.other).name}")
    return lost


def _step(path: str) -> int:
    found = re.search(r"checkpoint-(\d+)", path)
    return int(found[1]) if found else 0


def _moved(path: str, source: str, target: str) -> str:
    if path == source or path.startswith(source + "/"):
        return target + path[len(source) :]
    return path
