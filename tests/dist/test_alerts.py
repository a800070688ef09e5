"""Real runs that end, spike, stall and are killed: one message each, and none for Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.alert_receivers import HookServer, hook_server
from harness.faults import train_and_break
from harness.ranks import end_ranks
from harness.sick_runs import train_with_losses
from harness.tiny_run import Words

from wikillm.supervise.alerts import Alerts

LONG = (
    "train.max_steps=1000000",
    "train.lr_scheduler_type=constant_with_warmup",
    "train.save_steps=1000000",
    "train.eval_steps=null",
    "train.max_eval_tokens=500",
    "alerts.webhook=HOOK",
)
TOKEN = "canary-token-in-the-path"


@pytest.fixture
def hooks() -> Iterator[HookServer]:
    with hook_server() as server:
        yield server


def broken(
    words: Words,
    run: Path,
    hooks: HookServer,
    fault: str,
    *more: str,
    rank: int = 0,
    world: int = 2,
) -> dict[str, Any]:
    """The only message of a run with a fault in `rank`."""
    line = words(run, *LONG, *more)
    end_ranks(train_and_break, world, line, fault, rank, {}, HOOK=f"{hooks.url}/{TOKEN}")
    (message,) = hooks.wait_for(1)
    for path in run.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    return message


def test_a_killed_rank_0_is_reported_once(words: Words, tmp_path: Path, hooks: HookServer) -> None:
    message = broken(words, tmp_path / "run", hooks, "kill")
    assert message["event"] == "lost" and message["exit_code"] == 3 and message["step"] == 3
    assert message["reason"].startswith("rank 0 (pid ")


def test_a_spike_and_the_end_of_the_run_send_one_message_each(
    words: Words, tmp_path: Path, hooks: HookServer
) -> None:
    line = words(
        tmp_path / "run", *LONG[3:], "run.name=spiky", "train.max_steps=16", "train.spike_window=8",
        "train.save_steps=16",
    )  # fmt: skip
    factors = {(12, -1, -1): 20.0, (13, -1, -1): 20.0}
    end_ranks(train_with_losses, 1, line, factors, {}, HOOK=f"{hooks.url}/hook")
    spike, ended = hooks.wait_for(2)
    assert (spike["event"], ended["event"]) == ("spike", "ended")
    assert spike["reason"].startswith("loss spike at ") and ended["exit_code"] == 0
    assert ended["text"].startswith("WikiLLM: spiky has ended\n") and ended["step"] == 16


@pytest.mark.deep
@pytest.mark.parametrize(
    ("fault", "rank", "event"),
    [
        ("suspend", 1, "stalled"),
        ("fail", 1, "failed"),
        ("kill", 1, "lost"),
        ("terminate", 0, "stopped"),
        ("set-up kill", 0, "lost"),
        ("set-up terminate", 1, "stopped"),
    ],
)
def test_each_fault_sends_one_message(
    words: Words, tmp_path: Path, hooks: HookServer, fault: str, rank: int, event: str
) -> None:
    limit = ["train.stall_seconds=2"] if event == "stalled" else []
    message = broken(words, tmp_path / "run", hooks, fault, *limit, rank=rank)
    assert message["event"] == event, message


@pytest.mark.deep
def test_a_run_without_a_supervisor_reports_its_own_end(
    words: Words, tmp_path: Path, hooks: HookServer
) -> None:
    message = broken(words, tmp_path / "run", hooks, "fail", "train.supervise=off", world=1)
    assert message["event"] == "failed" and "/data/shard_7.bin" in message["reason"]


@pytest.mark.deep
def test_events_that_are_not_chosen_and_a_dead_server_change_nothing(
    words: Words, tmp_path: Path, hooks: HookServer
) -> None:
    line = words(tmp_path / "a", *LONG[3:], "train.max_steps=4", "alerts.events=failed,lost")
    assert end_ranks(train_and_break, 1, line, "kill", 1, {}, HOOK=f"{hooks.url}/a") == [0]
    line = words(tmp_path / "b", *LONG[3:], "train.max_steps=4")
    gone = {"HOOK": f"http://127.0.0.1:1/{TOKEN}"}
    assert end_ranks(train_and_break, 1, line, "kill", 1, {}, **gone) == [0]
    log = (tmp_path / "b" / "logs" / "rank_0.log").read_text()
    assert "the alert 'ended' was not delivered through webhook: Connection" in log
    assert TOKEN not in log and hooks.heard == []


def test_only_one_of_several_processes_that_notice_the_end_sends(
    tmp_path: Path, hooks: HookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like the agents of the other nodes after the first node is lost."""
    monkeypatch.setenv("HOOK", f"{hooks.url}/hook")
    (tmp_path / "ranks").mkdir()
    section = {"webhook": "HOOK", "events": ["lost", "stopped"], "channels": ["webhook"]}
    for rank in (8, 16):
        alerts = Alerts(section, "wiki", str(tmp_path), rank, is_first=rank == 8, opened=True)
        alerts.end("lost", 3, "No heartbeat from node1.", 7)
        alerts.end("lost", 3, "again", 7)
    late = Alerts(section, "wiki", str(tmp_path / "gone"), 16, is_first=False, opened=True)
    late.end("lost", 3, "its run directory cannot be reached, and rank 8 sends", 7)
    Alerts(section, "wiki", str(tmp_path)).end("stopped", 75, "Stopped by SIGINT at step 3", 3)
    (message,) = hooks.wait_for(1)
    assert message["reason"] == "No heartbeat from node1." and message["step"] == 7
