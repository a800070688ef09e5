"""F09 to F11 and F14: signals in each phase, NaN in each place, a rank that stands still."""

from __future__ import annotations

import signal
import time

from faults.lab import SAVE_STEPS, STEPS
from faults.programs import SIGNALS
from faults.trials import Bench
from wikillm.checkpoints.layout import list_checkpoints
from wikillm.core.errors import ExitCode

POISONS = ("loss", "gradient", "weight", "state")
GRACE = 3.2  # seconds after which a second signal is a second request (StopSignals.GRACE)


def signals(bench: Bench) -> None:
    """F09 and F10: one to one rank or to all, at a random moment: all save one step and exit 75."""
    name = bench.rng.choice(list(SIGNALS))
    everyone = list(range(bench.setup.world))
    ranks = everyone if bench.rng.random() < 0.5 else [bench.rng.choice(everyone)]
    delay = bench.rng.uniform(0.3, bench.lab.oracle(bench.setup).seconds)
    job = bench.run.start()
    time.sleep(delay)
    job.send(SIGNALS[name], ranks)
    ended = job.end()
    reached = max(bench.run.record().last.values(), default=-1) + 1
    bench.note(f"SIG{name} to ranks {ranks} after {delay:.2f} s, {reached} steps done")
    codes = {each.code for each in ended}
    done = reached == STEPS and codes == {0}
    if codes != {int(ExitCode.STOPPED)} and not done:
        bench.problem(f"exit codes {codes} instead of 75: {ended}")
    if codes == {int(ExitCode.STOPPED)} and reached:
        newest = [path.name for path in list_checkpoints(bench.run.checkpoints)][:1]
        if newest != [f"checkpoint-{reached}"]:
            bench.problem(f"{reached} steps were done, and the newest is {newest}")
    bench.check_published()
    bench.finish()
    if not done and bench.trial.redone:
        bench.problem(f"{bench.trial.redone} steps were redone after a stop that had saved")


def signal_twice(bench: Bench) -> None:
    """F09: the second signal ends the run at once, and what was published stays whole."""
    slow = {"rank": -1, "step": STEPS // 2, "pause": 30.0}  # a step that does not end in time
    job = bench.run.start(slow)
    name = bench.rng.choice(list(SIGNALS))
    while bench.run.record().last.get(0, -1) < STEPS // 2 - 1 and job.is_running():
        time.sleep(0.05)
    job.send(SIGNALS[name], list(range(bench.setup.world)))
    time.sleep(GRACE)
    job.send(SIGNALS[name], list(range(bench.setup.world)))
    began = time.monotonic()
    job.end()
    bench.note(f"SIG{name} twice during a step of 30 s, ended {time.monotonic() - began:.1f} s on")
    if time.monotonic() - began > 25.0:
        bench.problem("the second signal did not end the run")
    bench.check_published()
    bench.finish()


def poison(bench: Bench) -> None:
    """F11: a NaN in loss, gradient, weight or optimizer state of one rank.

    The run ends with exit code 5 or 7, and every checkpoint that it leaves resumes exactly.
    """
    place = bench.rng.choice(POISONS)
    step = bench.rng.randrange(SAVE_STEPS, STEPS - 2)
    rank = bench.rng.randrange(bench.setup.world)
    fault = {"rank": rank, "step": step, "poison": place}
    bench.note(f"NaN in the {place} of rank {rank} at step {step + 1}")
    ended = bench.run.start(fault).end()
    codes = {each.code for each in ended}
    # A rank whose weights are not those of the others is named with a code of its own.
    if bench.is_ours and codes not in ({int(ExitCode.DIVERGED)}, {int(ExitCode.CORRUPTED)}):
        bench.problem(f"exit codes {codes} instead of 5 or 7: {ended}")
    reached = max(bench.run.record().last.values(), default=-1)
    if bench.is_ours and reached > step + 1:
        bench.problem(f"it went on to step {reached + 1}")
    if not bench.is_ours and codes == {0}:
        bench.note(f"exit code 0 after {reached + 1} steps")
        bench.trial.is_wrong = True
        bench.problem("the run ended as if nothing had happened")
        return
    bench.finish()


def suspend(bench: Bench) -> None:
    """F14: one rank stands still for a while; the run goes on and is exact."""
    rank = bench.rng.randrange(bench.setup.world)
    seconds = bench.rng.uniform(0.5, 4.0)
    delay = bench.rng.uniform(0.0, bench.lab.oracle(bench.setup).seconds)
    job = bench.run.start()
    time.sleep(delay)
    job.send(signal.SIGSTOP, [rank])
    time.sleep(seconds)
    job.send(signal.SIGCONT, [rank])
    ended = job.end()
    bench.note(f"rank {rank} stopped for {seconds:.1f} s after {delay:.2f} s")
    if any(each.code for each in ended):
        bench.problem(f"a pause ended the run: {ended}")
        return
    bench.judge()


def suspend_for_ever(bench: Bench) -> None:
    """F14: one rank stalls: the run ends, the rank is named, and the run resumes."""
    rank = bench.rng.randrange(bench.setup.world)
    step = bench.rng.randrange(1, STEPS)
    fault = {"rank": rank, "step": step, "suspend": True}
    job = bench.run.start(fault, words=("train.stall_seconds=2",))
    job.end()
    bench.note(f"rank {rank} suspended in step {step + 1}")
    exit_file = bench.run.folder / "exit.json"
    said = exit_file.read_text() if exit_file.exists() else ""
    if f"rank {rank}" not in said:
        bench.problem(f"exit.json does not name rank {rank}: {said}")
    bench.check_published()
    bench.finish()
