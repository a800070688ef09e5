"""Build a small store many times, each with SIGKILL at another point, and print JSON results.

    python kill_points.py '{"folder": ..., "settings": {...}, "points": 200}'

A point is a moment before the process opens, renames, removes or syncs a file, or makes a folder.
Between two points the disk does not change, except for buffered writes. Points are spread evenly
over a build. A killed build resumes in a second process, which is also killed. A third process
completes it. Every build is a fork of one warm process that has not encoded anything yet, so no
build starts with the threads of another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from wikillm.config.schema_data import DataSection
from wikillm.data.prepare import (
    parts,  # noqa: F401  imported before the forks
    prepare,
)
from wikillm.data.tokenizer import (
    encoders as tokenizer_backend,  # noqa: F401  imported before the forks
)
from wikillm.data.workers import pool  # noqa: F401  imported before the forks

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")


def digest(store: Path) -> str:
    """One sha256 over the names and contents of all files."""
    whole = hashlib.sha256()
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        whole.update(
            f"{path.relative_to(store)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return whole.hexdigest()


def build(settings: dict, place: Path, kill_at: int | None, report: int) -> None:
    """Build in this child process. Die before event `kill_at`, or write the events to `report`."""
    seen = 0

    def count(path: object) -> None:
        nonlocal seen
        if isinstance(path, str | os.PathLike) and str(place.parent) in os.path.abspath(path):
            seen += 1
            if seen - 1 == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(lambda event, args: count(args[0]) if event in EVENTS else None)
    real = os.fsync

    def fsync(fd: int) -> None:
        count(
            f"/proc/self/fd/{fd}"
            if not Path(f"/proc/self/fd/{fd}").exists()
            else os.readlink(f"/proc/self/fd/{fd}")
        )
        real(fd)

    os.fsync = fsync  # type: ignore[assignment]
    out = os.open(os.devnull, os.O_WRONLY)
    os.dup2(out, 1)
    prepare.prepare_store(DataSection(**settings, store=str(place)))
    os.write(report, str(seen).encode())


def forked(settings: dict, place: Path, kill_at: int | None) -> tuple[int, int]:
    """Exit status of the build, and its number of events if it completed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            build(settings, place, kill_at, writer)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    text = os.read(reader, 100)
    os.close(reader)
    return os.waitstatus_to_exitcode(status), int(text or 0)


def main() -> None:
    order = json.loads(sys.argv[1])
    folder = Path(order["folder"])
    settings = order["settings"]
    # With 2 workers the parent, which is the process to kill, has fewer events.
    crews = (1, 2) if order["points"] > 20 else (1,)
    events = {}
    digests = set()
    for workers in crews:
        place = folder / f"whole{workers}" / "store"
        code, events[workers] = forked({**settings, "workers": workers}, place, None)
        assert code == 0, "the build that is not killed ended badly"
        digests.add(digest(place))
    (wanted,) = digests
    found = []
    for number in range(order["points"]):
        place = folder / f"{number}" / "store"
        workers = crews[-1] if number % 4 == 3 else 1
        mine = {**settings, "workers": workers}
        most = events[workers]
        first = number * most // order["points"]
        second = (first * 7919 + number) % most
        codes = [forked(mine, place, at)[0] for at in (first, second, None)]
        # A worker that lost its parent ends at its next report and removes its files.
        for _ in range(100):
            if not list(place.rglob("*.staging")):
                break
            time.sleep(0.1)
        same = digest(place) == wanted
        names = sorted(str(p.relative_to(place)) for p in place.rglob("*"))
        found.append(
            {
                "at": [first, second],
                "workers": workers,
                "codes": codes,
                "same": same,
                "names": names,
            }
        )
        shutil.rmtree(place.parent)
    print(json.dumps({"events": events, "sha256": wanted, "points": found}))


if __name__ == "__main__":
    main()
