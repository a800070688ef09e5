"""F01 to F04: SIGKILL at any moment, at every call of a save, while resuming; power loss."""

from __future__ import annotations

import time

from faults import interpose
from faults.lab import SAVE_STEPS, STEPS
from faults.trials import Bench

WATCHED_STEP = 2 * SAVE_STEPS - 1  # its end is a save, with two earlier checkpoints beside it

LAUNCHER_SECONDS = 3.0  # until the launcher kills the other ranks of one that was killed


def _kill_at_random(bench: Bench, longest: float) -> None:
    """Start the run and kill one rank, all ranks, or all ranks with their agents.

    At a random time of `longest` seconds, which is mostly the start, or within a random step.
    """
    number = bench.run.starts
    job = bench.run.start()
    delay = bench.rng.uniform(0.0, longest)
    step = bench.rng.randrange(STEPS)
    if bench.rng.random() < 0.7:
        while job.is_running() and bench.run.record().last.get(number, -1) < step:
            time.sleep(0.01)
        delay = time.time() - job.began + bench.rng.uniform(0.0, 2 * _step_seconds(bench))
    while job.is_running() and time.time() - job.began < delay:
        time.sleep(0.002)
    everyone = list(range(bench.setup.world))
    whole = bench.rng.random() < 0.5
    ranks = everyone if whole else [bench.rng.choice(everyone)]
    with_children = whole and bench.rng.random() < 0.5
    job.kill(ranks, with_children=with_children)
    if not whole:
        job.wait_for_end(LAUNCHER_SECONDS)
        job.kill(everyone)  # as a launcher does
    job.end()
    who = "all ranks and their agents" if with_children else f"ranks {ranks}"
    reached = max(bench.run.record().last.values(), default=-1) + 1
    bench.note(f"SIGKILL to {who} after {delay:.2f} s, {reached} steps done")
    bench.check_published()


def _step_seconds(bench: Bench) -> float:
    record = bench.lab.oracle(bench.setup).record
    return (record.ended - record.first[0][1]) / (STEPS - 1)


def kill(bench: Bench) -> None:
    """F01: at a random moment of a run."""
    _kill_at_random(bench, bench.lab.oracle(bench.setup).seconds)
    bench.finish()


def kill_while_resuming(bench: Bench, kills: int = 5) -> None:
    """F04: several kills in a row, each at a random moment of a start."""
    for _ in range(kills):
        _kill_at_random(bench, 0.8 * bench.lab.oracle(bench.setup).seconds)
    bench.finish()


def count_calls(bench: Bench, rank: int) -> int:
    """How many calls of this rank change the checkpoint folder during one save, and rotation."""
    counted = bench.run.folder.with_suffix(f".{rank}.count")
    fault = {
        "rank": rank, "step": WATCHED_STEP, "calls": str(bench.run.checkpoints),
        "until": WATCHED_STEP + SAVE_STEPS, "counted": str(counted),
    }  # fmt: skip
    bench.run.start(fault).end()
    found = int(counted.read_text())
    counted.unlink()
    bench.run.remove()
    return found


def kill_at_call(bench: Bench, rank: int, at: int, *, half: bool) -> None:
    """F02, F03: kill `rank` before call `at` of a save, or in the middle of it; then all others."""
    fault = {
        "rank": rank, "step": WATCHED_STEP, "calls": str(bench.run.checkpoints), "at": at,
        "half": half,
    }  # fmt: skip
    job = bench.run.start(fault)
    died = job.wait_for_death(rank)
    job.kill(list(range(bench.setup.world)))
    job.end()
    bench.note(f"rank {rank} killed {'in' if half else 'before'} call {at} of a save")
    if not died:
        bench.note("not reached this time")
    bench.check_published()
    bench.finish()


def power(bench: Bench) -> None:
    """All ranks end at one call of a save; what was not synced may be lost."""
    folder = bench.run.folder
    rank = bench.rng.randrange(bench.setup.world)
    log = folder.with_suffix(".calls")
    fault = {"rank": -1, "step": 1, "calls": str(bench.run.checkpoints), "log": str(log)}
    # Every rank logs its calls; the one that is killed counts in its own.
    at = bench.rng.randrange(40 * (STEPS // SAVE_STEPS))
    job = bench.run.start(fault | {"at": at, "dies": rank})
    died = job.wait_for_death(rank)
    job.kill(list(range(bench.setup.world)), with_children=True)
    job.end()
    if not died:
        bench.note("that many calls were not made")
    logs = list(folder.parent.glob(f"{log.name}.*"))
    lost = interpose.lose_power(
        interpose.read_calls(logs), bench.rng, newest_only=not bench.is_ours
    )
    for path in logs:
        path.unlink()
    bench.note(f"no power at call {at} of rank {rank}; lost: {', '.join(lost) or 'nothing'}")
    bench.check_published()
    bench.finish()
