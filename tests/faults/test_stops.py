"""A run that is stopped, poisoned, suspended or started twice ends as promised, and resumes."""

from __future__ import annotations

import pytest

from faults import changes, stops
from faults.lab import Lab, Setup
from faults.trials import Fault, run_trial

TWO_RANKS = Setup(world=2)


@pytest.mark.parametrize(
    ("fault", "do", "setup", "seed"),
    [
        ("nan", stops.poison, Setup(), 3),
        pytest.param("nan", stops.poison, TWO_RANKS, 4, marks=pytest.mark.deep),
        pytest.param("signal", stops.signals, TWO_RANKS, 1, marks=pytest.mark.deep),
        pytest.param("drift", changes.drift, Setup(), 1, marks=pytest.mark.deep),
        pytest.param("loaders", changes.loaders, Setup(), 1, marks=pytest.mark.deep),
        pytest.param("two-runs", changes.two_runs, Setup(), 1, marks=pytest.mark.deep),
        pytest.param("pause", stops.suspend, TWO_RANKS, 2, marks=pytest.mark.deep),
        pytest.param("stall", stops.suspend_for_ever, TWO_RANKS, 1, marks=pytest.mark.deep),
        pytest.param("twice", stops.signal_twice, TWO_RANKS, 1, marks=pytest.mark.deep),
    ],
)
def test_a_fault(fault: str, do: Fault, setup: Setup, seed: int, lab: Lab) -> None:
    trial = run_trial(lab, fault, do, setup, seed)
    assert not trial.problems, trial
