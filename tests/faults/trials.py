"""One trial: a fault in a run, what the next starts make of it, and whether that is as promised."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from faults.job import Ended
from faults.lab import SAVE_STEPS, Lab, Run, Setup, compare
from wikillm.checkpoints.layout import list_checkpoints
from wikillm.checkpoints.manifest import verify
from wikillm.core.errors import CheckpointError

STARTS = 8  # a run that has not finished after so many undisturbed starts counts as failed


@dataclass(slots=True)
class Trial:
    """What a trial did and found. `problems` is empty when every promise held.

    Attributes:
        unusable: checkpoints that the run counted on and could not resume from.
        is_wrong: a start resumed without an error and trained something else.
        redone: optimizer steps computed again because of the fault.
        recover_seconds: from each undisturbed start to its first optimizer step.
    """

    fault: str
    setup: str
    seed: int
    what: str = ""
    level: str = ""
    lost: int = 0
    repeated: int = 0
    unusable: int = 0
    is_wrong: bool = False
    redone: int = 0
    loss: float = 0.0
    recover_seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        again = f"--faults {self.fault} --setup {self.setup} --seed {self.seed}"
        return f"{again}: {self.what}: {'; '.join(self.problems) or self.level}"


@dataclass(slots=True)
class Bench:
    """A trial under way: the lab, the seeded choices, the run and what is found."""

    lab: Lab
    trial: Trial
    rng: random.Random
    run: Run
    setup: Setup
    output: str = ""  # of rank 0 of the latest undisturbed start
    most_redone: int = 2 * SAVE_STEPS  # a save that was still being written is lost as well

    @property
    def is_ours(self) -> bool:
        return self.setup.side == "wikillm"

    def note(self, text: str) -> None:
        self.trial.what = f"{self.trial.what}, {text}" if self.trial.what else text

    def problem(self, text: str) -> None:
        self.trial.problems.append(text)

    def check_published(self) -> None:
        """Every checkpoint with a final name is whole. (WikiLLM only: stock has no way to tell)"""
        if not self.is_ours:
            return
        for checkpoint in list_checkpoints(self.run.checkpoints):
            try:
                verify(checkpoint)
            except CheckpointError as error:
                self.trial.unusable += 1
                self.problem(f"a published checkpoint is damaged: {error}")

    def refused(self, ended: list[Ended], code: int, names: Iterable[str]) -> bool:
        """Whether rank 0 ended with this exit code and its message has all the names.

        A rank that waits for rank 0 before they have met is ended by the launcher.
        """
        if ended[0].code != code or any(each.code not in (code, None) for each in ended):
            self.problem(f"not the exit code {code}: {ended}")
            return False
        missing = [name for name in names if name not in ended[0].message]
        if missing:
            self.problem(f"the message does not name {missing}: {ended[0].message}")
        return not missing

    def resume(self, setup: Setup | None = None) -> list[Ended]:
        """One undisturbed start; notes how long it took to the first step and what it redid."""
        before = self.run.record()
        reached = max(before.last.values(), default=-1)
        number = self.run.starts
        job = self.run.start(setup=setup)
        ended = job.end()
        self.output = ended[0].output
        first = self.run.record().first.get(number)
        if first is not None:
            step, at = first
            self.trial.recover_seconds.append(round(at - job.began, 3))
            self.trial.redone = max(self.trial.redone, reached + 1 - step)
            if self.is_ours and reached + 1 - step > self.most_redone:
                self.problem(f"{reached + 1 - step} steps were redone")
        return ended

    def finish(self, setup: Setup | None = None, level: str = "L1") -> None:
        """Resume until the run is complete, then compare it with its oracle.

        Where a stock run cannot resume, its newest checkpoint is removed, as a person would.
        """
        for _ in range(STARTS):
            ended = self.resume(setup)
            failed = [each for each in ended if each.code != 0]
            if not failed:
                break
            self.trial.unusable += not self.is_ours
            if self.is_ours:
                self.problem(f"a resume failed: {failed[0]}")
                return
            self.note(f"stock could not resume: {failed[0].message.splitlines()[0][:120]}")
            remove_newest(self.run.checkpoints)
        else:
            self.problem(f"not finished after {STARTS} starts")
            return
        self.judge(level)

    def judge(self, level: str = "L1") -> None:
        """Compare the finished run with the oracle of the setup that it began with."""
        found = compare(self.run, self.lab.oracle(self.setup))
        self.trial.level = found.level
        self.trial.lost = found.lost
        self.trial.repeated = found.repeated
        self.trial.loss = max(self.trial.loss, found.loss)
        self.trial.is_wrong = level not in found.level and not (
            level == "L2" and "L1" in found.level
        )
        if self.trial.is_wrong:
            self.problem(f"{found.level or 'nothing'} instead of {level}: {found}")


def remove_newest(folder: Path) -> None:
    """Delete the checkpoint of the highest step, if any."""
    for checkpoint in list_checkpoints(folder)[:1]:
        shutil.rmtree(checkpoint)


Fault = Callable[[Bench], None]


def run_trial(lab: Lab, fault: str, do: Fault, setup: Setup, seed: int) -> Trial:
    """Run one trial in a run directory of its own; an exception of the rig is a problem too."""
    lab.oracle(setup)
    trial = Trial(fault, str(setup), seed)
    run = lab.new_run(setup)
    bench = Bench(lab, trial, random.Random(f"{fault} {setup} {seed}"), run, setup)
    began = time.monotonic()
    try:
        do(bench)
    except Exception as error:
        bench.problem(f"{type(error).__name__}: {error}")
    bench.note(f"{time.monotonic() - began:.1f} s")
    if not trial.problems:
        run.remove()
    return trial
