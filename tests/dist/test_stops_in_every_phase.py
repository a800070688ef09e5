"""A request to stop in every phase of a real run: exit 75, one step, nothing lost; save on request.

The table below has every phase of `supervise/heartbeat`. A phase before training ends at once. One
of training ends at its own step, with a checkpoint of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.ranks import end_ranks, run_ranks
from harness.stops import train_and_ask, train_ask_and_exit, train_with_a_slow_first_step
from harness.tiny_run import Words

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.core.errors import ExitCode
from wikillm.supervise.heartbeat import PHASES

AT_ONCE = None
LAST = 8
TABLE: dict[str, int | None] = {
    "start": AT_ONCE,
    "store": AT_ONCE,
    "engine": AT_ONCE,
    "model": AT_ONCE,
    "setup": AT_ONCE,
    "supply": 4,
    "first step": 1,
    "data": 4,
    "step": 4,
    "evaluate": 4,
    "save": 4,
    "close": LAST,
}
"""By phase, the step of the checkpoint with which the run ends."""
DAILY = ("evaluate",)
"""Phases of the ordinary suite. The other phases, which are similar, are marked deep."""


def asked(
    words: list[str], phase: str, ask: str = "signal", *, world: int = 2, rank: int = 1
) -> list[dict[str, Any]]:
    return run_ranks(train_and_ask, world, words, phase, ask, rank, {})


def steps_in(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run / "checkpoints")]


def test_the_table_has_every_phase() -> None:
    assert tuple(TABLE) == PHASES


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(phase, marks=() if phase in DAILY else pytest.mark.deep)
        for phase in PHASES
        if phase != "start"  # ends before this test can reach it; see unit/supervise/test_signals
    ],
)
def test_a_signal_to_one_rank_stops_all_in_every_phase(
    words: Words, tmp_path: Path, phase: str
) -> None:
    run = tmp_path / "run"
    evaluation = LAST if phase == "save" else 4  # an evaluation would come before the save's end
    line = words(run, f"train.eval_steps={evaluation}", "train.save_steps=4")
    step = TABLE[phase]
    if step is AT_ONCE:
        codes = end_ranks(train_ask_and_exit, 2, line, phase, "signal", 1, {})
        assert codes == [ExitCode.STOPPED, ExitCode.STOPPED] and steps_in(run) == []
        return
    results = asked(line, phase)
    if phase == "close":
        assert [result["code"] for result in results] == [0, 0]
    else:
        assert [result["code"] for result in results] == [75, 75], results[0]["output"]
        assert results[0]["exit"]["step"] == step, results[0]["exit"]
    assert steps_in(run)[0] == f"checkpoint-{step}"
    if phase == "evaluate":
        assert results[0]["eval"] == [], "an evaluation that was cut short is not reported"
    if phase == "save":
        said = results[0]["output"]
        assert "; with the checkpoint of step 4" in said and said.count("saved ") == 1


def test_a_first_step_that_compiles_for_long_ends_without_a_checkpoint(
    words: Words, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    codes = end_ranks(train_with_a_slow_first_step, 2, words(run), 60.0, {})
    assert codes == [ExitCode.STOPPED, ExitCode.STOPPED] and steps_in(run) == []
    said = json.loads((run / "exit.json").read_text())
    assert said["code"] == 75 and "Stopped by SIGTERM in the first step" in said["reason"]


def test_a_file_stops_a_run_that_still_prepares_its_data(words: Words, tmp_path: Path) -> None:
    """The run has no records in its directory yet, so only the file can stop it."""
    run = tmp_path / "run"
    line = words(run)
    (result,) = asked(line, "store", str(run / "stop"), world=1, rank=0)
    assert result["code"] == 75 and str(run / "stop") in result["message"]
    # The next start takes no notice of it, and removes it.
    (result,) = asked(line, "close", world=1, rank=0)
    assert result["code"] == 0 and not (run / "stop").exists()


def test_files_save_and_stop_a_run_in_training(words: Words, tmp_path: Path) -> None:
    long = ("train.max_steps=100000", "train.save_steps=100000", "train.eval_steps=null")
    constant = "train.lr_scheduler_type=constant_with_warmup"
    run = tmp_path / "run"
    results = run_ranks(
        train_and_ask, 2, words(run, *long, constant), "step", str(run / "save"), 0,
        {"files_after": str(run / "stop")},
    )  # fmt: skip
    assert [result["code"] for result in results] == [75, 75]
    assert f"saving a checkpoint at step 4: {run / 'save'}" in results[0]["output"]
    assert steps_in(run)[-1] == "checkpoint-4" and len(steps_in(run)) == 2
    assert not (run / "save").exists()
    assert results[0]["exit"]["reason"].startswith(f"Stopped by {run / 'stop'} at step ")
