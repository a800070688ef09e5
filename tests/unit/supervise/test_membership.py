"""Verdicts at given times: which events end a run, when, and which rank the reason names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.core.errors import ExitCode
from wikillm.supervise.membership import End, Limits, Member, Membership

LIMITS = Limits(rendezvous=50, lost=20, stall=120, leave=60)
SAME = {"torch": "2.13.0", "configuration": "aaa"}


def membership(
    size: int = 4, local: int = 2, *, joined: int | None = None, nodes: tuple[str, ...] = ()
) -> Membership:
    made = Membership(size, local, LIMITS, began=0.0, nodes=nodes)
    for rank in range(size if joined is None else joined):
        node = rank // local + 1
        made.hello(rank, Member(f"node{node}", f"10.0.0.{node}", dict(SAME), 0.0, pid=70 + rank))
    return made


def beat(made: Membership, ranks: list[int], now: float, **more: Any) -> None:
    beats = {"phase": "step", "step": 7, "standing": 1.0, "limit": 120.0, "median": 1.0, **more}
    for rank in ranks:
        made.beat(rank, beats, now)


def reason(end: End | None, code: ExitCode = ExitCode.MACHINE) -> str:
    assert end is not None and end.code == code
    return end.reason


def test_nothing_is_wrong_while_all_beat() -> None:
    made = membership()
    for now in range(1, 200, 5):
        beat(made, [0, 1, 2, 3], now)
        assert made.verdict(now + 1.0) is None


def test_a_silent_node_is_named_with_its_ranks() -> None:
    made = membership()
    beat(made, [2, 3], 100.0)
    beat(made, [0, 1], 119.0)
    assert made.verdict(119.9) is None
    assert "node2 (10.0.0.2, ranks 2-3)" in reason(made.verdict(120.5))


@pytest.mark.parametrize(
    ("nodes", "name"), [(("a", "b"), "b (ranks 2-3)"), ((), "node number 1 (ranks 2-3)")]
)
def test_a_node_that_does_not_join_is_named(nodes: tuple[str, ...], name: str) -> None:
    made = membership(joined=2, nodes=nodes)
    beat(made, [0, 1], 49.0)
    assert made.verdict(49.9) is None
    said = reason(made.verdict(50.0))
    assert name in said and "joined: node1" in said


def test_different_versions_are_listed_with_their_nodes() -> None:
    made = membership(joined=2)
    for rank in (2, 3):
        made.hello(rank, Member("node2", "10.0.0.2", {**SAME, "torch": "2.12.0"}, 1.0))
    assert "torch: 2.13.0 on node1, 2.12.0 on node2" in reason(made.verdict(1.0))


@pytest.mark.parametrize("is_known", [False, True])
def test_a_ranks_own_reason_precedes_the_death_of_another(is_known: bool) -> None:
    """Rank 3 is killed by its launcher because rank 2 failed: the others report rank 2's reason."""
    made = membership()
    made.died(3, "was killed by signal 15", 9.5, is_known=is_known)
    made.bye(2, ExitCode.DATA, "shard 7 is damaged", 9.0)
    assert made.verdict(12.0) is None
    said = reason(made.verdict(14.1), ExitCode.DATA)
    assert "rank 2 on node2 (10.0.0.2, pid 72) ended: shard 7 is damaged" in said


def test_a_dead_process_is_named_sooner_where_its_end_is_known() -> None:
    made = membership()
    made.died(3, "is gone: nobody knows how", 10.0)
    assert made.verdict(12.4) is None
    assert "rank 3 on node2 (10.0.0.2, pid 73) is gone" in reason(made.verdict(12.6))
    made = membership(2, 2)
    made.died(1, "was killed by signal 9", 10.0, is_known=True)
    assert made.verdict(10.2) is None
    assert reason(made.verdict(10.6)) == "rank 1 (pid 71) was killed by signal 9."
    assert made.reporter() == 0


def test_a_stop_before_training_ends_the_others_at_once_and_an_agreed_stop_waits() -> None:
    made = membership()
    made.bye(1, ExitCode.STOPPED, "stopped before training", 10.0, is_agreed=False)
    reason(made.verdict(11.0), ExitCode.STOPPED)
    made = membership()
    made.bye(0, ExitCode.STOPPED, "stopped", 100.0)
    for now in range(101, 159):
        beat(made, [1, 2, 3], now)
        assert made.verdict(now) is None
    reason(made.verdict(160.1), ExitCode.STOPPED)


def test_ranks_that_reported_their_exit_are_not_lost() -> None:
    made = membership()
    for rank in range(4):
        made.bye(rank, 0, "the horizon was reached", 10.0)
    assert made.verdict(500.0) is None


def test_time_in_which_the_whole_job_was_suspended_does_not_count() -> None:
    """Ctrl-Z and an hour later fg: no heartbeat arrived, and no step was done."""
    made = membership()
    made.resumed_at = 3600.0
    beat(made, [0, 1, 2, 3], 3600.5, standing=3600.0)
    assert made.verdict(3615.0) is None
    beat(made, [0, 1, 2, 3], 3721.0, standing=3720.0)
    assert "No progress" in reason(made.verdict(3721.0))


def test_ranks_wait_for_one_that_generates_samples_but_not_for_data() -> None:
    made = membership()
    beat(made, [1, 2, 3], 200.0, step=8, standing=150.0)
    beat(made, [0], 200.0, phase="evaluate", standing=150.0, limit=1800.0)
    assert made.verdict(200.0) is None
    beat(made, [1], 200.0, phase="data", step=8, standing=150.0)
    assert "rank 1) blocks the other ranks" in reason(made.verdict(200.0))


def test_a_stall_names_the_rank_that_blocks_the_others() -> None:
    made = membership()
    for standing in (119.0, 121.0):
        beat(made, [0, 1, 2], 200.0, standing=standing)
        beat(made, [3], 200.0, phase="data", standing=standing)
        end = made.verdict(200.0)
        assert (end is None) == (standing < 120)
    said = reason(end)
    assert "node2 (10.0.0.2, rank 3) blocks the other ranks" in said
    assert "rank 3 on node2: data, step 7, for 121 s" in said


@given(standing=st.floats(0, 1e5))
def test_a_phase_without_limit_never_stalls(standing: float) -> None:
    made = membership(2, 1)
    beat(made, [0, 1], 10.0, phase="store", limit=None, standing=standing)
    assert made.verdict(10.0) is None
