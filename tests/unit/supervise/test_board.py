"""What a rank marks, another process reads; and how long each phase may stand still."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wikillm.supervise.board import LIMITS, PHASES, Board, Progress


def test_another_process_reads_what_was_marked(repo: Path) -> None:
    board = Board()
    board.enter("model")
    board.step_done(12)
    board.enter("evaluate")
    code = f"from wikillm.supervise.board import Board; p = Board({board.fd}).read(); print(p.phase, p.step)"
    environ = {**os.environ, "PYTHONPATH": str(repo)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        pass_fds=(board.fd,),
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["evaluate", "12"]


def test_the_first_two_steps_have_the_limit_of_compilation() -> None:
    board = Board()
    seen = []
    for step in range(1, 5):
        board.enter("supply")
        board.enter("data")
        reading = board.read().phase
        board.enter("step")
        seen.append((reading, board.read().phase))
        board.step_done(step)
    assert seen == [("setup", "first step")] * 2 + [("data", "step")] * 2
    assert board.read().median > 0


def test_progress_within_a_phase_counts() -> None:
    board = Board()
    board.enter("evaluate")
    time.sleep(0.05)
    board.progress()
    reading = board.read()
    assert reading.standing < 0.04 <= reading.in_phase


@pytest.mark.parametrize("phase", PHASES)
def test_only_steps_and_their_data_have_the_short_limit(phase: str) -> None:
    """What compiles, builds, saves or evaluates has a limit of its own, or none."""
    limit = Progress(phase, 5, 0.0, 0.0, 20.0).limit(120.0)
    if phase in ("data", "step"):
        assert limit == 200.0
        assert Progress(phase, 5, 0.0, 0.0, 0.5).limit(120.0) == 120.0
    else:
        assert limit == LIMITS[phase] and (limit is None or limit >= 600.0)
