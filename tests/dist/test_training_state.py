"""A training state leaves one engine as fragments and enters any other by slices, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from harness.ranks import run_ranks
from harness.training_states import Case, Outcome, Whole, merged, run_case

PLAIN = Case(1, None)


def run(case: Case, saved: tuple[Whole, dict] | None, before: int, after: int) -> list[Outcome]:
    """Run a case on its ranks; all of them must list and count the same, and write equal shares."""
    ranks: list[Outcome] = run_ranks(run_case, case.world, case, saved, before, after)
    for outcome in ranks:
        assert outcome.specs == ranks[0].specs
        assert outcome.counters == ranks[0].counters
        assert outcome.losses == ranks[0].losses
    written = [sum(len(values) for _, _, values in o.fragments) for o in ranks]
    total = sum(spec.numel for spec in ranks[0].specs)
    assert max(written) < total / case.world * 1.1
    return ranks


def taken(ranks: list[Outcome]) -> Whole:
    return merged(ranks[0].specs, [outcome.fragments for outcome in ranks])


def taken_after(ranks: list[Outcome]) -> Whole:
    return merged(ranks[0].specs, [outcome.fragments_after for outcome in ranks])


def assert_equal(found: Whole, meant: Whole) -> None:
    assert list(found) == list(meant)
    differing = [key for key in meant if not np.array_equal(found[key], meant[key])]
    assert not differing


def assert_continues(case: Case, steps: int = 3) -> None:
    """Save and load in the same engine: all that follows has the same bits."""
    straight = run(case, None, steps, steps)
    saved = taken(straight)
    loaded = run(case, (saved, straight[0].counters), steps, steps)
    assert_equal(taken(loaded), saved)
    assert loaded[0].counters == straight[0].counters
    assert loaded[0].losses == straight[0].losses
    assert loaded[0].counters_after == straight[0].counters_after
    assert_equal(taken_after(loaded), taken_after(straight))
    for one, other in zip(loaded, straight, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.weights, other.weights, strict=True))


def assert_chain(cases: list[Case], steps: int, optimizer: str = "adamw") -> None:
    """Train each case `steps` steps on the state of the one before; losses are those of one run."""
    straight = run(Case(1, None, optimizer), None, 0, steps * len(cases))[0].losses
    saved = None
    for number, case in enumerate(cases):
        ranks = run(case, saved, steps * number, steps)
        if saved is not None:
            assert_equal(taken(ranks), saved[0])
        step = steps * (number + 1)
        assert ranks[0].losses == pytest.approx(straight[step - steps : step], rel=1e-5)
        assert ranks[0].counters_after["optimizer_step"] == step
        assert ranks[0].counters_after["scheduler"] == {"last_epoch": step}
        saved = taken_after(ranks), ranks[0].counters_after


def test_other_ranks_and_stages() -> None:
    cases = [PLAIN, Case(2, 1), Case(2, 3), Case(4, 2), Case(2, None), Case(1, 3)]
    assert_chain(cases, 2)
