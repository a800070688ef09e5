"""Collective operations of the control group on real gloo ranks."""

from __future__ import annotations

from harness.programs import agree, leave_without
from harness.ranks import run_ranks


def test_ranks_agree_on_votes_sums_and_values() -> None:
    results = run_ranks(agree, 3, 2)
    for result in results:
        assert result["votes"] == (True, False)
        assert result["sum"] == (3.0, 3.0)
        assert result["everyone"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]


def test_one_process_agrees_with_itself() -> None:
    from wikillm.train.collectives import ControlGroup

    group = ControlGroup()
    assert group.any(True, False) == (True, False)
    assert group.sum(1.5) == (1.5,)
    assert group.gather("x") == ["x"]


def test_leaving_does_not_wait_for_ever_for_a_lost_rank() -> None:
    waited = run_ranks(leave_without, 2, 1, 1.0)[0]
    assert 0.5 < waited < 10.0
