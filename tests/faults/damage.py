"""F05 to F07: a damaged checkpoint, all of them damaged, a full disk; F21: a damaged store."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from faults.lab import SAVE_STEPS, STEPS, Run
from faults.trials import Bench
from wikillm.checkpoints.layout import list_checkpoints
from wikillm.core.errors import DataError
from wikillm.core.files import files_below
from wikillm.data.inspect.verify import verify
from wikillm.data.store.store import Store

STOPPED_AT = STEPS - 2 * SAVE_STEPS  # checkpoints of this and two earlier saves are there


def stopped_run(bench: Bench) -> Run:
    """A copy of a run of this setup that was killed after its save at STOPPED_AT."""
    templates = bench.lab.templates
    if bench.setup not in templates:
        run = bench.lab.new_run(bench.setup)
        fault = {"rank": -1, "step": STOPPED_AT + 1, "kill": True}
        run.start(fault).end()
        wanted = [STOPPED_AT - n * SAVE_STEPS for n in range(3)]
        found = [int(path.name.split("-")[1]) for path in list_checkpoints(run.checkpoints)]
        if found[:1] == [wanted[1]]:  # written in the background: the newest was not finished
            wanted = [step - SAVE_STEPS for step in wanted]
        wanted = [step for step in wanted if step > 0]
        assert found[: len(wanted)] == wanted, found  # the kill may precede a rotation
        templates[bench.setup] = run
    template = templates[bench.setup]
    bench.run.starts = template.starts
    for suffix in ("", ".record"):
        source = template.folder.with_suffix(suffix)
        shutil.copytree(source, bench.run.folder.with_suffix(suffix))
    return template


def hurt(path: Path, rng: random.Random) -> str:
    """Damage one file: cut it off, flip a bit, zero 4 KiB of it, or delete it."""
    size = path.stat().st_size
    kind = rng.choice(("delete", "cut", "flip", "zero") if size else ("delete",))
    data = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        os.truncate(path, rng.randrange(size))
    elif kind == "flip":
        data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    else:
        # Zeros over zeros change nothing: begin at a byte that is not 0.
        at = rng.choice([i for i in range(size) if data[i]] or [0])
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        path.write_bytes(data)
    return kind


def corrupt(bench: Bench) -> None:
    """F05: any file of the newest checkpoint. Found before a step, an older one named and used."""
    stopped_run(bench)
    bench.most_redone = 3 * SAVE_STEPS  # the damaged checkpoint's as well
    newest, older = list_checkpoints(bench.run.checkpoints)[:2]
    path = bench.rng.choice(list(files_below(newest)))
    bench.note(f"{hurt(path, bench.rng)} {path.relative_to(newest)}")
    number = bench.run.starts
    bench.finish()
    if not bench.is_ours:
        return
    output = bench.output
    step, _ = bench.run.record().first[number]
    if f"skipping {newest.name}" not in output or f"{older.name} (step" not in output:
        bench.problem(f"the fallback is not named in {output[-500:]}")
    if step != int(older.name.split("-")[1]):
        bench.problem(f"it began at step {step} and not from {older.name}")


def corrupt_all(bench: Bench) -> None:
    """F06: every checkpoint. Refused with every reason, exit code 6, nothing deleted."""
    stopped_run(bench)
    checkpoints = list_checkpoints(bench.run.checkpoints)
    for checkpoint in checkpoints:
        path = bench.rng.choice(list(files_below(checkpoint)))
        bench.note(f"{hurt(path, bench.rng)} {path.relative_to(bench.run.checkpoints)}")
    there = [path for each in checkpoints for path in files_below(each)]
    ended = bench.run.start().end()
    if bench.refused(ended, 6, [checkpoint.name for checkpoint in checkpoints]):
        bench.trial.level = "refused"
    if not all(path.exists() for path in there):
        bench.problem("files of a damaged checkpoint were deleted")


def hurt_store(bench: Bench) -> None:
    """F21: a file of the token store. A size that is wrong is refused before a step (exit code 4).

    A start compares sizes, as a store may have terabytes; `wikillm data verify` finds the rest.
    """
    stopped_run(bench)
    store = bench.run.folder.with_suffix(".store")
    shutil.copytree(bench.lab.folder / "store", store)
    path = bench.rng.choice(list((store / "store" / "train").iterdir()))
    kind = hurt(path, bench.rng)
    bench.note(f"{kind} {path.relative_to(store)}")
    if kind in ("cut", "delete"):
        number = bench.run.starts
        ended = bench.run.start(words=(f"data.store={store / 'store'}",)).end()
        if number in bench.run.record().first:
            bench.problem("a step was trained on a damaged store")
        is_found = bench.refused(ended, 4, [path.name])
    else:
        with suppress(DataError):
            verify(Store.open(store / "store"))
            bench.problem(f"verify did not find the damage of {path.name}")
        is_found = not bench.trial.problems
    bench.trial.level = "refused" if is_found else ""
    shutil.rmtree(store)


def own_mounts() -> bool:
    """Give this process a mount namespace of its own; False without the right to."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts = 0x00020000
    if os.geteuid() != 0 or libc.unshare(new_mounts) != 0:
        return False
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True)
    return done.returncode == 0


def full_disk(bench: Bench) -> None:
    """F07: a disk that is full after any number of KiB of checkpoints, then has room again.

    Needs `own_mounts` before the fork server starts.
    """
    place = bench.run.folder.with_suffix(".disk")
    place.mkdir()
    whole = sum(path.stat().st_size for path in files_below(bench.lab.oracle(bench.setup).folder))
    room = bench.rng.randrange(64, max(128, whole // 1024))
    _mount("-t", "tmpfs", "-o", f"size={room}k", "tmpfs", str(place))
    bench.run.folder = place / "run"
    try:
        ended = bench.run.start().end()
        bench.note(f"a disk of {room} KiB")
        if bench.is_ours and not (ended[0].code == 0 or bench.refused(ended, 3, ["room"])):
            return
        bench.note(f"exit code {ended[0].code}")
        if ended[0].code == 0 and not (bench.run.checkpoints / f"checkpoint-{STEPS}").exists():
            bench.problem("exit code 0 without the last checkpoint")
        bench.most_redone = STEPS  # saves without room are left out, and training goes on
        bench.check_published()
        _mount("-o", "remount,size=64m", str(place))
        bench.finish()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)
