"""Damage is found before a step is trained on it, and the run resumes from what is whole."""

from __future__ import annotations

import random

import pytest

from faults import damage
from faults.lab import Lab, Setup
from faults.trials import Bench, Fault, Trial, run_trial
from wikillm.checkpoints.latest import latest_complete
from wikillm.checkpoints.layout import list_checkpoints
from wikillm.core.files import files_below


@pytest.mark.parametrize(
    ("fault", "do", "seed"),
    [
        ("corrupt", damage.corrupt, 1),
        ("corrupt-all", damage.corrupt_all, 1),
        ("store", damage.hurt_store, 1),
    ],
)
def test_a_damaged_file(fault: str, do: Fault, seed: int, lab: Lab) -> None:
    trial = run_trial(lab, fault, do, Setup(), seed)
    assert not trial.problems, trial


@pytest.mark.parametrize("damages", [100, pytest.param(500, marks=pytest.mark.deep)])
def test_every_damage_is_found(damages: int, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Any file of the newest checkpoint, damaged in any way: the one before it is taken."""
    run = lab.new_run(Setup())
    bench = Bench(lab, Trial("corrupt", str(run.setup), 0), random.Random(0), run, run.setup)
    damage.stopped_run(bench)
    newest, older = list_checkpoints(run.checkpoints)[:2]
    rng = random.Random(0)
    for number in range(damages):
        path = rng.choice(list(files_below(newest)))
        content = path.read_bytes()
        kind = damage.hurt(path, rng)
        assert latest_complete(run.checkpoints) == older, f"seed 0, damage {number}: {kind} {path}"
        assert f"skipping {newest.name}" in capsys.readouterr().err
        path.write_bytes(content)
    assert latest_complete(run.checkpoints) == newest
