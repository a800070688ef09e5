"""train.max_hours: the decision, by a simulated clock, and where the clock starts."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

from hypothesis import example, given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState, TrainingArguments

from wikillm.train.callbacks.time_limit import MARGIN, TimeLimitCallback, seconds_since_start

ARGS: TrainingArguments = None  # type: ignore[assignment]  # not read by the callback


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Saves:
    """Saves that end beside the steps, by the simulated clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.longest_seconds = 0.0
        self.until = 0.0

    @property
    def is_writing(self) -> bool:
        return self.clock.now < self.until

    def save(self, seconds: float) -> None:
        self.clock.now = max(self.clock.now, self.until)  # it waits for the one before
        self.until = self.clock.now + seconds
        self.longest_seconds = max(self.longest_seconds, seconds)


def simulate(
    hours: float | None,
    starts_at: float,
    steps: list[float],
    saves: list[float],
    every: int,
    known: float,
) -> tuple[int, float]:
    """Steps done, and the time at the end of the final save."""
    clock = Clock()
    state = TrainerState()
    clock.now = starts_at
    saver = Saves(clock)
    saver.longest_seconds = known
    limit = TimeLimitCallback(hours, 0, saver, elapsed=clock)
    for done, (step, save) in enumerate(zip(steps, saves, strict=True), start=1):
        control = TrainerControl()
        limit.on_step_begin(ARGS, state, control)
        clock.now += step
        control.should_save = done % every == 0
        limit.on_step_end(ARGS, state, control)
        stop = limit.reason() is not None
        if control.should_save or stop:
            saver.save(save)
        if stop:
            return done, max(clock.now, saver.until)
    return len(steps), clock.now


@example(length=0.015625, cost=115.0, seed=18, every=2, starts_at=0.0)
@given(
    length=st.floats(0.01, 100.0),
    cost=st.floats(0.0, 300.0),
    seed=st.integers(0, 10**6),
    every=st.integers(1, 50),
    starts_at=st.floats(0.0, 1000.0),
)
def test_the_checkpoint_is_complete_before_the_limit(
    length: float, cost: float, seed: int, every: int, starts_at: float
) -> None:
    """Steps and saves vary by a fourth; an earlier start has measured a save."""
    hours = (starts_at + 30 * length + 4 * MARGIN * cost) / 3600 + 0.01
    random = Random(seed)
    steps, saves = (
        [mean * random.uniform(MARGIN**-0.5, MARGIN**0.5) for _ in range(300)]
        for mean in (length, cost)
    )
    done, end = simulate(hours, starts_at, steps, saves, every, known=cost)
    assert done >= 1
    if done < len(steps):
        assert end <= 3600 * hours


def test_the_run_does_not_stop_much_too_early() -> None:
    done, end = simulate(1.0, 0.0, [10.0] * 1000, [30.0] * 1000, 100, known=30.0)
    assert 3600 - 60 - 2 * MARGIN * 30 - 3 * 10 < end <= 3600
    assert done > 300


def test_without_a_limit_or_before_the_first_step_there_is_no_reason() -> None:
    assert simulate(None, 0.0, [1.0] * 5, [1.0] * 5, 2, 0.0)[0] == 5
    assert TimeLimitCallback(1e-9, 10**9, Saves(Clock())).reason() is None


def test_the_clock_starts_with_the_process_or_with_slurms_job(tmp_path: Path) -> None:
    here = seconds_since_start({})
    assert 0 < here < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert seconds_since_start({}) >= here
    assert (
        3600 <= seconds_since_start({"SLURM_JOB_START_TIME": str(int(time.time()) - 3600)}) < 3700
    )
    odd = tmp_path / "stat"
    odd.write_text(Path("/proc/self/stat").read_text().replace("(", "(a) b (", 1))
    assert abs(seconds_since_start({}, odd) - seconds_since_start({})) < 5
