"""Ranks on one machine that are killed, stall, fail or are asked to stop: exit codes, exit.json."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from harness.faults import train_and_break
from harness.ranks import end_ranks, run_ranks
from harness.sick_runs import train_with_slow_saves
from harness.tiny_run import Words

from wikillm.checkpoints.layout import MANIFEST
from wikillm.core.errors import ExitCode
from wikillm.supervise.records import UNKNOWN_END

LONG = (
    "train.max_steps=1000000",
    "train.lr_scheduler_type=constant_with_warmup",
    "train.save_steps=1000000",
)
QUIET = ("train.eval_steps=null", "train.max_eval_tokens=500")
OOM = "(often|not by) the kernel's out-of-memory killer"
# The tests' fork server reaps a process at once. Before Linux 6.15 its signal is then lost.
KILLED = rf"rank {{rank}} \(pid \d+\) (was killed by signal 9; {OOM}|{re.escape(UNKNOWN_END)})\."


def broken(
    words: Words, run: Path, fault: str, rank: int, *more: str, world: int = 2, **options: Any
) -> tuple[list[int], dict[str, Any]]:
    """Run with a fault in `rank`. Return the exit codes of the ranks and exit.json."""
    codes = end_ranks(
        train_and_break, world, words(run, *LONG, *QUIET, *more), fault, rank, options
    )
    return codes, dict(json.loads((run / "exit.json").read_text()))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_with_its_signal(rank: int, words: Words, tmp_path: Path) -> None:
    codes, said = broken(words, tmp_path / "run", "kill", rank)
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == ExitCode.MACHINE
    assert re.fullmatch(KILLED.format(rank=rank), said["reason"]), said
    assert (said["code"], said["lost_rank"]) == (3, rank)


def test_a_killed_rank_is_named_without_a_supervisor(words: Words, tmp_path: Path) -> None:
    codes, said = broken(words, tmp_path / "run", "kill", 1, "train.supervise=off")
    assert codes == [ExitCode.MACHINE, -signal.SIGKILL]
    assert re.fullmatch(KILLED.format(rank=1), said["reason"]), said
    assert (said["code"], said["lost_rank"]) == (3, 1)


def test_the_reason_of_a_killed_single_process_is_recorded(words: Words, tmp_path: Path) -> None:
    run = tmp_path / "run"
    codes = end_ranks(train_and_break, 1, words(run, *LONG, *QUIET), "kill", 0, {})
    assert codes == [-signal.SIGKILL]
    wait_for(run / "exit.json")  # the agent writes it shortly afterwards
    said = json.loads((run / "exit.json").read_text())
    assert re.fullmatch(KILLED.format(rank=0), said["reason"])
    assert (said["code"], said["lost_rank"]) == (3, 0)


def test_a_rank_killed_in_setup_is_named_and_the_other_rank_ends(
    words: Words, tmp_path: Path
) -> None:
    """The other rank waits for it while DeepSpeed starts."""
    codes, said = broken(words, tmp_path / "run", "set-up kill", 1, deepspeed="zero2")
    assert codes[1] == -signal.SIGKILL and codes[0] in (ExitCode.MACHINE, -signal.SIGKILL)
    assert re.fullmatch(KILLED.format(rank=1), said["reason"])
    assert (said["code"], said["lost_rank"]) == (3, 1)


def test_a_stalled_rank_ends_the_run(words: Words, tmp_path: Path) -> None:
    codes, said = broken(words, tmp_path / "run", "suspend", 1, "train.stall_seconds=2")
    assert codes[0] == ExitCode.MACHINE and codes[1] == -signal.SIGKILL
    assert (said["code"], said["lost_rank"]) == (3, 1) and "No progress for" in said["reason"]
    assert re.search(r"rank 1 \(pid \d+\) blocks the other ranks", said["reason"])
    assert "_inner_training_loop" in (tmp_path / "run" / "logs" / "rank_0.log").read_text(), (
        "the stacks are there"
    )


@pytest.mark.deep
@pytest.mark.parametrize(("fault", "place"), [("hang", "a_wait_without_end"), ("hold", "meet")])
def test_a_single_process_that_hangs_ends_with_its_stacks(
    words: Words, tmp_path: Path, fault: str, place: str
) -> None:
    """In Python it ends by itself; with the interpreter's lock held, its agent ends it."""
    run = tmp_path / "run"
    line = words(run, *LONG, *QUIET, "train.stall_seconds=2")
    codes = end_ranks(train_and_break, 1, line, fault, 0, {})
    assert codes[0] in (ExitCode.MACHINE, -signal.SIGKILL)
    wait_for(run / "exit.json")
    said = json.loads((run / "exit.json").read_text())
    assert said["code"] == 3 and "No progress for" in said["reason"]
    assert "in the phase 'step' (limit 2 s).\n  rank 0: step, step 3, for" in said["reason"]
    assert f"in {place}" in (run / "logs" / "rank_0.log").read_text()


def test_a_save_may_take_longer_than_a_step(words: Words, tmp_path: Path) -> None:
    """Step 4 waits for the save of step 2, for more than train.stall_seconds."""
    line = words(
        tmp_path / "run", "train.max_steps=4", "train.save_steps=2", "train.stall_seconds=2"
    )
    results = run_ranks(train_with_slow_saves, 2, line, 5.0)
    assert [result["code"] for result in results] == [0, 0], results[0]["message"]


@pytest.mark.parametrize(("fault", "code"), [("fail", 3), ("compile", 1)])
def test_the_error_of_the_rank_that_failed_is_kept(
    fault: str, code: int, words: Words, tmp_path: Path
) -> None:
    codes, said = broken(words, tmp_path / "run", fault, 1)
    assert codes[0] == code and codes[1] != 0
    assert "shard_7." in said["reason"] and "onnection" not in said["reason"]
    assert (said["lost_rank"], said["code"]) == (1, code) and len(said["reason"]) < 10_000


def test_a_closed_session_saves_on_all_ranks(words: Words, tmp_path: Path) -> None:
    codes, said = broken(words, tmp_path / "run", "hang-up", 1)
    assert codes == [ExitCode.STOPPED, ExitCode.STOPPED] and said["code"] == 75
    assert said["reason"].startswith("Stopped by SIGHUP (rank 1) at step 4")
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-4" / MANIFEST).exists()


def test_a_stop_of_one_rank_in_setup_ends_all_ranks(words: Words, tmp_path: Path) -> None:
    codes, said = broken(words, tmp_path / "run", "set-up terminate", 1)
    assert codes == [ExitCode.STOPPED, ExitCode.STOPPED] and said["code"] == 75
    assert "before training began" in said["reason"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
