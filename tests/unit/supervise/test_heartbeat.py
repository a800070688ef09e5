"""Another process reads the marks of a rank; each phase has its stall limit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wikillm.supervise.heartbeat import LIMITS, PHASES, Heartbeat, RankProgress


def test_another_process_reads_what_was_marked(repo: Path) -> None:
    heartbeat = Heartbeat()
    heartbeat.enter("model")
    heartbeat.step_done(12)
    heartbeat.enter("evaluate")
    code = "from wikillm.supervise.heartbeat import Heartbeat; "
    code += f"p = Heartbeat({heartbeat.fd}).read(); print(p.phase, p.step)"
    environ = {**os.environ, "PYTHONPATH": str(repo)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        pass_fds=(heartbeat.fd,),
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["evaluate", "12"]


def test_the_first_two_steps_have_the_limit_of_compilation() -> None:
    heartbeat = Heartbeat()
    seen = []
    for step in range(1, 5):
        heartbeat.enter("supply")
        heartbeat.enter("data")
        reading = heartbeat.read().phase
        heartbeat.enter("step")
        seen.append((reading, heartbeat.read().phase))
        heartbeat.step_done(step)
    assert seen == [("setup", "first step")] * 2 + [("data", "step")] * 2
    assert heartbeat.read().median > 0


def test_progress_within_a_phase_counts() -> None:
    heartbeat = Heartbeat()
    heartbeat.enter("evaluate")
    time.sleep(0.05)
    assert heartbeat.read().standing >= 0.05
    before = time.monotonic()
    heartbeat.progress()
    assert heartbeat.read().standing <= time.monotonic() - before


@pytest.mark.parametrize("phase", PHASES)
def test_only_steps_and_their_data_have_the_short_limit(phase: str) -> None:
    """What compiles, builds, saves or evaluates has its own limit, or none."""
    limit = RankProgress(phase, 5, 0.0, 20.0).limit(120.0)
    if phase in ("data", "step"):
        assert limit == 200.0
        assert RankProgress(phase, 5, 0.0, 0.5).limit(120.0) == 120.0
    else:
        assert limit == LIMITS[phase] and (limit is None or limit >= 600.0)


def test_a_reading_in_the_middle_of_a_write_is_the_record_before_it() -> None:
    """The kernel may stop a rank between two fields; here the conversion of a field reads."""
    heartbeat = Heartbeat()
    heartbeat.step_done(7)
    readings = []

    class Step:
        def __index__(self) -> int:
            readings.append(Heartbeat(heartbeat.fd).read())
            return 8

    heartbeat.step_done(Step())  # type: ignore[arg-type]
    assert [(each.step, each.standing < 60) for each in readings] == [(7, True)] * len(readings)
    assert readings and heartbeat.read().step == 8
