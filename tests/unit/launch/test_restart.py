"""Restarts of `wikillm launch`: after which codes, how often, from where, and until when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from wikillm.checkpoints.layout import STATE, checkpoint_name
from wikillm.checkpoints.lineage import Position, next_ancestry
from wikillm.checkpoints.manifest import files_to_list, seal_files, write_manifest
from wikillm.core.errors import ConfigError, ExitCode, MachineError
from wikillm.launch import restart
from wikillm.launch.description import Launch
from wikillm.launch.fewer_ranks import with_fewer_ranks
from wikillm.launch.restart import FINAL, Launched, RestartPolicy, keep_running, last_checkpoint
from wikillm.supervise.requests import stop_file
from wikillm.supervise.stop import stop


@pytest.mark.parametrize("code", [*ExitCode, 137, -9, 255])
def test_no_restart_follows_a_code_that_would_repeat(code: int) -> None:
    is_final = code in (0, 2, 4, 5, 6, 7, 75)
    assert (code in FINAL) is is_final
    assert RestartPolicy(1).may_restart(code, None) is not is_final


def test_restarts_are_counted_anew_after_a_new_checkpoint() -> None:
    policy = RestartPolicy(2)
    first = Position(1, 10)
    # (the last checkpoint after a failure, started again, pause)
    story: list[tuple[Position | None, bool, float]] = [
        (None, True, 5.0),
        (None, True, 10.0),
        (first, True, 5.0),
        (first, True, 10.0),
        (first, False, 10.0),
    ]
    for reached, again, pause in story:
        assert (policy.may_restart(3, reached), policy.pause) == (again, pause)
    late = RestartPolicy(100, tried=50)
    assert late.pause == restart.MAX_PAUSE


def save(run: Path, step: int) -> None:
    checkpoint = run / "checkpoints" / checkpoint_name(step)
    checkpoint.mkdir(parents=True)
    (checkpoint / STATE).write_text(json.dumps({"step": step}))
    ancestry = next_ancestry(run / "checkpoints", step, None)
    facts = {"step": step, "world_size": 1, **ancestry.to_json()}
    write_manifest(checkpoint, seal_files(checkpoint, files_to_list(checkpoint)), facts)


class Run:
    """A run directory whose starts are real processes with given exit codes.

    A start: (exit code of the process, code in exit.json, step that it saves).
    """

    def __init__(self, folder: Path, *starts: tuple[int, int | None, int | None]) -> None:
        self.path = folder / "runs" / "a"
        self.path.mkdir(parents=True)
        self.launch = Launch("a", ("x=1",), "", workdir=str(folder), max_restarts=2)
        self.starts = list(starts)
        self.words: list[tuple[str, ...]] = []
        self.alerts: list[tuple[int, str]] = []
        self.limits: list[str] = []

    def start(self, launch: Launch, launched: Launched) -> int:
        self.words.append(launch.words)
        self.limits.append(launch.variables[restart.RESTARTS])
        code, recorded, step = self.starts.pop(0)
        if step is not None:
            save(self.path, step)
        if recorded is not None:
            (self.path / "exit.json").write_text(json.dumps({"code": recorded}))
        process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
        launched.processes = [process]
        return process.wait()

    def alert(self, code: int, reason: str) -> None:
        self.alerts.append((code, reason))

    def keep_running(self) -> int:
        return keep_running(self.launch, self.start, lambda launch: None, self.alert)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv(restart.RESTARTS, raising=False)


AGAIN = ("--resume", "auto", "x=1")


def test_a_failed_run_resumes_until_it_is_done(tmp_path: Path, no_pause: None) -> None:
    # torchrun and deepspeed turn codes into 1: the record has the real one
    run = Run(tmp_path, (1, 3, None), (1, 3, 4), (137, None, 8), (0, 0, 12))
    assert run.keep_running() == 0
    assert run.words == [("x=1",), AGAIN, AGAIN, AGAIN]


def test_a_final_code_in_the_record_ends_it(tmp_path: Path, no_pause: None) -> None:
    run = Run(tmp_path, (1, 3, 2), (1, 5, 4))
    assert run.keep_running() == 5 and len(run.words) == 2
    assert run.alerts == [], "the start that failed has sent its own"


def test_starts_that_save_nothing_are_limited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pause: None
) -> None:
    run = Run(tmp_path, *[(1, 3, None)] * 3)
    assert run.keep_running() == 3 and len(run.words) == 3
    assert "giving up after 2 restarts" in capsys.readouterr().out
    why = "giving up after 2 restarts without a new checkpoint (--max-restarts)"
    assert run.alerts == [(3, why)]
    # Alerts of ranks, on other nodes too, announce a restart. The last alert does not.
    assert run.limits == ["2"] * 3 and restart.RESTARTS not in os.environ


def test_a_missing_tool_is_reported_at_once_and_a_lost_connection_is_not(tmp_path: Path) -> None:
    def unreached(launch: Launch, launched: Launched) -> int:
        launched.processes = [subprocess.Popen([sys.executable, "-c", "raise SystemExit(255)"])]
        launched.processes[0].wait()
        raise MachineError("ssh did not reach node2.")

    def missing(launch: Launch, launched: Launched) -> int:
        raise MachineError("deepspeed is not on this machine.")

    launch = Launch("a", (), "", workdir=str(tmp_path))
    assert keep_running(launch, unreached, lambda launch: None) == ExitCode.MACHINE
    with pytest.raises(MachineError, match="deepspeed"):
        keep_running(launch, missing, lambda launch: None)


def test_an_old_record_is_not_the_code_of_this_start(tmp_path: Path) -> None:
    run = Run(tmp_path, (2, None, None))
    (run.path / "exit.json").write_text(json.dumps({"code": 3}))
    assert run.keep_running() == 2 and len(run.words) == 1


def test_a_named_checkpoint_stays_until_the_run_has_saved(tmp_path: Path, no_pause: None) -> None:
    run = Run(tmp_path, (1, 3, None), (1, 3, 7), (0, 0, None))
    run.launch = Launch(
        "a", ("--resume", "old/checkpoint-3", "x=1"), "", workdir=str(tmp_path), max_restarts=2
    )
    assert run.keep_running() == 0
    named = ("--resume", "old/checkpoint-3", "x=1")
    assert run.words == [named, named, AGAIN], "auto would have left the branch that was chosen"


@pytest.mark.parametrize(
    ("lost", "counts"),
    [
        ([1, 1, None], [8, 8, 4, 4]),  # 7 and 6 and 5 do not divide 32 sequences
        ([1, 2, 1], [8, 8, 8, 8]),
        ([None, None, 1], [8, 8, 8, 8]),
        (["1", "1", -1, -1], [8, 8, 8, 8, 8]),  # not what a run writes
        ([1, 1, 1, 1], [8, 8, 4, 4, 2]),
    ],
)
def test_a_rank_that_two_starts_lose_is_left_out(
    tmp_path: Path, lost: list[object], counts: list[int], monkeypatch: pytest.MonkeyPatch,
    no_pause: None,
) -> None:  # fmt: skip
    monkeypatch.setattr(restart, "count_gpus", lambda: None)
    run = Run(tmp_path, *[(1, 3, None)] * len(lost), (0, 0, None))
    run.launch = replace(run.launch, gpus=8, elastic=True, max_restarts=9)
    found: list[int | None] = []
    left = iter([*lost, None])

    def start(launch: Launch, launched: Launched) -> int:
        found.append(launch.gpus)
        code = run.start(launch, launched)
        record = {"code": code and 3, "lost_rank": next(left)}
        written = {name: value for name, value in record.items() if value is not None}
        (run.path / "exit.json").write_text(json.dumps(written))
        return code

    def check(launch: Launch) -> None:
        if 32 % (launch.gpus or 1):
            raise ConfigError("the batch does not divide")

    assert keep_running(run.launch, start, check) == 0
    assert found == counts


def test_gpus_that_are_gone_or_lost_are_not_used_again() -> None:
    def accepts(launch: Launch) -> None:
        pass

    whole = Launch("a", (), "", gpus=4)
    without = with_fewer_ranks(whole, 1, 4, accepts)
    argv = without.deepspeed_argv()
    assert argv[argv.index("--include") + 1] == "localhost:0,2,3" and "--num_gpus" not in argv
    again = with_fewer_ranks(without, 1, 4, accepts)
    assert again.gpus == 2 and again.gpu_ids == (0, 3)
    # GPU 3 has left the bus: the other three have new numbers.
    assert with_fewer_ranks(again, None, 3, accepts).gpu_ids == (0, 1)
    assert with_fewer_ranks(whole, None, 4, accepts) is whole
    assert with_fewer_ranks(Launch("a", (), ""), 1, None, accepts).gpus is None


@pytest.mark.parametrize("how", ["file", "command", "signal"])
def test_a_request_to_stop_in_the_pause_is_heeded(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart, "FIRST_PAUSE", 60.0)
    run = Run(tmp_path, (1, 3, None), (0, 0, None))

    def ask() -> None:
        deadline = time.monotonic() + 30
        while not (run.path / "restart.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if how == "file":
            stop_file(run.path).touch()
        elif how == "command":
            stop(run.path, at_once=False, timeout=1.0, on_wait=lambda running: None)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    assert run.keep_running() == 3 and len(run.words) == 1
    asking.join()
    assert not (run.path / "restart.json").exists()


def test_the_last_checkpoint_is_the_one_that_resume_auto_takes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert last_checkpoint(run) is None
    save(run, 8)
    save(run, 4)  # written later: the run went back
    assert last_checkpoint(run) == Position(2, 4)
