"""Collective operations of the control group on real gloo ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness.programs import agree, leave_without, share_folder
from harness.ranks import run_ranks


def test_ranks_agree_on_votes_sums_and_values() -> None:
    results = run_ranks(agree, 3, 2)
    for result in results:
        assert result["votes"] == (True, False)
        assert result["sum"] == (3.0, 3.0)
        assert result["everyone"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]


def test_leaving_does_not_wait_for_ever_for_a_lost_rank() -> None:
    waited = run_ranks(leave_without, 2, 1, 1.0)[0]
    assert 0.5 < waited < 10.0


@pytest.mark.parametrize("kind", ["the same", "a copy", "other checkpoints"])
def test_a_folder_that_not_all_ranks_share_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    """A copy of the run directory, or a separate disk at checkpoints/, on the second node."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text('{"id": "a", "tracker": "b"}')
    other = tmp_path / "other"
    if kind == "the same":
        other.symlink_to(run)
    else:
        shutil.copytree(run, other)
    if kind == "other checkpoints":
        (other / "run.json").unlink()
        (other / "run.json").symlink_to(run / "run.json")
    for said in run_ranks(share_folder, 2, [str(run), str(other)]):
        if kind == "the same":
            assert said == "" and not list((run / "checkpoints" / ".staging").iterdir())
        else:
            assert "checkpoints is not the same folder on every node" in said
            assert "rank 1 on" in said and "all nodes share" in said
