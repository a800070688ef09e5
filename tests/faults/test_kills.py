"""A killed run resumes exactly, whatever moment it was killed at."""

from __future__ import annotations

from functools import partial

import pytest

from faults import kills
from faults.lab import Lab, Setup
from faults.trials import run_trial


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.deep)])
def test_sigkill_at_a_random_moment(seed: int, lab: Lab) -> None:
    trial = run_trial(lab, "kill", kills.kill, Setup(world=2, recipe="zero2"), seed)
    assert not trial.problems, trial


@pytest.mark.deep
def test_two_kills_while_resuming(lab: Lab) -> None:
    twice = partial(kills.kill_while_resuming, kills=2)
    trial = run_trial(lab, "resuming", twice, Setup(), 1)
    assert not trial.problems, trial
