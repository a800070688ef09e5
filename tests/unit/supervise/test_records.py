"""Which process is rank N, and that no other is ever mistaken for it: records, stop, status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError
from wikillm.supervise.records import (
    Process,
    RankRecord,
    Recorder,
    end_of,
    handle_of,
    read_records,
    write_record,
)
from wikillm.supervise.requests import announce_restart, watched_requests
from wikillm.supervise.stop import end_here, is_running, stop


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


MEMORY = "from wikillm.supervise.heartbeat import Heartbeat; memory = Heartbeat(); "


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that has run `code` and then sleeps."""
    words = [sys.executable, "-c", f"{code}; print(flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.read(1)
            yield process
        finally:
            process.kill()


@pytest.fixture
def rank_0(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A rank as the kernel sees it: its shared memory and its log file."""
    (tmp_path / "logs").mkdir()
    with running(f"{MEMORY}log = open({str(tmp_path / 'logs' / 'rank_0.log')!r}, 'a')") as process:
        yield process


def record(process: Process, rank: int = 0, **more: object) -> RankRecord:
    made = RankRecord(rank, rank, 2, process, "eth0", "step", 7, 0.5, 5.0, time.time())
    return replace(made, **more)  # type: ignore[arg-type]


def test_a_reused_pid_is_not_the_run(tmp_path: Path, rank_0: subprocess.Popen[bytes]) -> None:
    """The same pid with another start time, boot or host: not alive, and never killed."""
    ours = Process.here(rank_0.pid)
    write_record(tmp_path, record(ours))
    assert ours.is_alive() and is_running(record(ours))
    for other in (
        replace(ours, started=ours.started - 1),
        replace(ours, boot="another"),
        replace(ours, host="node9"),
    ):
        assert not other.is_alive()
        assert not other.send(signal.SIGKILL)
        end_here(tmp_path, record(other))
    assert rank_0.poll() is None
    assert end_here(tmp_path, record(ours)) is None
    assert rank_0.wait(10) == -signal.SIGKILL
    assert not ours.is_alive() and not ours.send(signal.SIGTERM)


@pytest.mark.parametrize("pid", [-1, 0, 1 << 40])
def test_an_invalid_pid_is_no_process(tmp_path: Path, pid: int) -> None:
    strange = replace(Process.here(os.getpid()), pid=pid)
    assert not strange.is_alive() and not strange.send(signal.SIGTERM)
    assert end_here(tmp_path, record(strange)) is None


@pytest.mark.parametrize("more", ["", "log", "memory", "other log", "reader"])
def test_a_planted_record_ends_no_process_that_is_not_the_runs(
    tmp_path: Path, more: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right pid, start time, boot, host and user, but not a rank of this run."""
    monkeypatch.setattr("wikillm.supervise.stop.GRACE", 0.0)
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "rank_0.log"
    log.touch()
    opened = log if more in ("log", "reader") else tmp_path / "other"
    code = "" if more in ("", "log") else MEMORY
    code += f"f = open({str(opened)!r}, {'r' if more == 'reader' else 'a'!r})"
    with running(code) as process:
        write_record(tmp_path, record(Process.here(process.pid)))
        assert main(["stop", str(tmp_path), "--wait", "5", "--now"]) == 3
        said = capsys.readouterr().err
        assert f"pid {process.pid}" in said and f"ps -fp {process.pid}" in said
        assert "not killed: it does not have this run's log file open" in said
        assert process.poll() is None


def test_a_planted_record_ends_no_process_that_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with (tmp_path / "logs" / "rank_0.log").open("a") as log:
        process = subprocess.Popen(["sleep", "60"], stdout=log)
    try:
        # The kernel shows the command line a moment after the program has begun.
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"sleep"):
            time.sleep(0.01)
        write_record(tmp_path, record(Process.here(process.pid)))
        why = end_here(tmp_path, record(Process.here(process.pid)))
        assert why == "it is not Python: sleep 60" and process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_ends_no_process_of_a_user_who_did_not_write_the_record(tmp_path: Path) -> None:
    """A folder of one user that names the process of another one; then the owner's own folder."""
    (tmp_path / "logs").mkdir()
    opens = f"log = open({str(tmp_path / 'logs' / 'rank_0.log')!r}, 'a')"
    with running(f"{MEMORY}{opens}; import os; os.setuid(65534)") as process:
        there = record(Process.here(process.pid))
        write_record(tmp_path, there)
        assert end_here(tmp_path, there) == "it belongs to another user (uid 65534)"
        assert process.poll() is None
        os.chown(tmp_path / "ranks" / "rank_0.json", 65534, 65534)
        assert end_here(tmp_path, there) is None and process.wait(10) == -signal.SIGKILL


WRONG: list[dict[str, object]] = [
    {"rank": "0"},
    {"rank": 1},
    {"rank": True},
    {"step": "x"},
    {"step": 1 << 70},
    {"time": "now"},
    {"time": float("inf")},
    {"phase": None},
    {"interval": None},
    {"process": None},
    {"process": {"pid": 1}},
    {"exit": {}},
    {"exit": "x"},
    {"more": 1},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_record_of_wrong_types_is_none(
    tmp_path: Path,
    change: dict[str, object],
    sleeper: subprocess.Popen[bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run.json").write_text("{}")
    write_record(tmp_path, record(Process.here(sleeper.pid)))
    path = tmp_path / "ranks" / "rank_0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert read_records(tmp_path) == []
    path.write_text("[" * 100_000)
    (tmp_path / "exit.json").write_text("[" * 100_000)
    (tmp_path / "metrics.jsonl").write_text("[" * 60_000 + '\n{"loss": "x"}\n')
    assert main(["status", str(tmp_path)]) == 0
    assert "state      starting" in capsys.readouterr().out


def test_a_zombie_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = Process.here(process.pid)
    process.kill()
    deadline = time.monotonic() + 10
    while known.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not known.is_alive()
    process.communicate()


def test_a_rank_of_another_machine_is_judged_by_its_records_age(
    sleeper: subprocess.Popen[bytes],
) -> None:
    there = replace(Process.here(sleeper.pid), host="node9")
    now = time.time()
    assert is_running(record(there, time=now - 10), now)
    assert not is_running(record(there, time=now - 60), now)
    assert not is_running(record(there, exit={"code": 0, "reason": ""}), now)


def test_records_of_a_larger_earlier_run_do_not_count(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    here = Process.here(sleeper.pid)
    write_record(tmp_path, record(here, rank=3, world_size=4, time=time.time() - 100))
    for rank in (0, 1):
        write_record(tmp_path, record(here, rank=rank))
    (tmp_path / "ranks" / "rank_2.json").write_text('{"rank":')
    assert [found.rank for found in read_records(tmp_path)] == [0, 1]


def test_stop_now_reaches_each_rank_once_through_its_recorder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    here, asked = Process.here(sleeper.pid), []
    ended: dict[str, object] = {}

    def react() -> None:
        asked.append(True)
        ended.update(code=75, reason="asked")
        sleeper.kill()
        sleeper.wait()

    mark = tmp_path / "mark"  # a batch script does not queue the job again when it finds it
    monkeypatch.setenv("WIKILLM_STOP_MARK", str(mark))
    writer = Recorder(tmp_path, lambda: record(here, exit=dict(ended) or None, interval=0.0), react)
    writer.start()
    try:
        deadline = time.monotonic() + 10
        while not read_records(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not mark.exists()
        result = stop(tmp_path, at_once=True, timeout=20, on_wait=lambda running: None)
    finally:
        writer.close(record(here, exit={"code": 75, "reason": "asked"}))
    assert asked == [True] and not (tmp_path / "stop").exists()
    assert [r.rank for r in result.ended] == [0] and not result.remaining and mark.exists()
    with pytest.raises(ConfigError, match="Nothing runs"):
        stop(tmp_path, at_once=False, timeout=1, on_wait=lambda running: None)


def test_ranks_that_do_not_respond_are_named(
    tmp_path: Path,
    rank_0: subprocess.Popen[bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wikillm.supervise.stop.GRACE", 0.5)
    announce_restart(tmp_path)  # by a launcher that was killed; the run was started again by hand
    write_record(tmp_path, record(Process.here(rank_0.pid)))
    assert main(["stop", str(tmp_path), "--wait", "0.1"]) == 3
    assert f"rank 0: pid {rank_0.pid}" in capsys.readouterr().err
    assert main(["stop", str(tmp_path), "--wait", "20", "--now"]) == 0
    assert rank_0.wait(1) == -signal.SIGKILL


def test_stop_reaches_rank_0_through_the_file_and_waits(
    tmp_path: Path, rank_0: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wikillm.supervise.requests.LOOK_SECONDS", 0.05)
    write_record(tmp_path, record(Process.here(rank_0.pid)))
    said: list[str] = []

    def react(why: str) -> None:
        said.append(why)
        rank_0.terminate()
        rank_0.wait()

    with watched_requests(tmp_path, react, is_main=True):
        result = stop(tmp_path, at_once=False, timeout=20, on_wait=lambda running: None)
    assert said == [str(tmp_path / "stop")] and not result.remaining


def test_a_request_is_newer_than_the_start_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wikillm.supervise.requests.LOOK_SECONDS", 0.01)
    for name in ("stop", "save"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1.7e9, 1.7e9))
    stopped: list[str] = []
    with watched_requests(tmp_path, stopped.append, is_main=True) as requests:
        time.sleep(0.2)
        assert not requests.wants_save and not stopped, "they are of an earlier start"
        requests.remove_old()
        assert not list(tmp_path.iterdir())
        for _ in range(2):
            (tmp_path / "save").touch()
            deadline = time.monotonic() + 20
            while not requests.wants_save and time.monotonic() < deadline:
                time.sleep(0.01)
            assert requests.wants_save
            requests.clear_save_request()
            assert not requests.wants_save and not (tmp_path / "save").exists()
    assert not stopped


def test_status_of_a_run_and_of_its_end(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(tmp_path)]) == 2
    (tmp_path / "run.json").write_text("{}")
    capsys.readouterr()
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "starting"
    write_record(tmp_path, record(Process.here(sleeper.pid)))
    line = {"step": 7, "tokens": 700, "loss": 2.5, "tokens_per_second": 99.0, "time": time.time()}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 8, "los')
    assert main(["status", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["state"], said["step"], said["tokens_per_second"]) == ("running", 7, 99.0)
    assert said["ranks"][0] | {"seen_seconds_ago": 0, "host": ""} == {
        "rank": 0, "host": "", "pid": sleeper.pid, "interface": "eth0", "phase": "step", "step": 7,
        "standing_seconds": 0.5, "seen_seconds_ago": 0, "running": True, "exit": None,
    }  # fmt: skip
    sleeper.kill()
    sleeper.wait()
    assert main(["status", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "state      silent" in text and "gone" in text
    (tmp_path / "exit.json").write_text(
        json.dumps({"code": 3, "meaning": "machine", "reason": "lost", "step": 7})
    )
    assert main(["status", str(tmp_path)]) == 0
    assert "exit       3 at step 7: lost" in capsys.readouterr().out


OFTEN = "often the kernel's out-of-memory killer"


@pytest.mark.parametrize(
    ("program", "sent", "said"),
    [
        ("input()", signal.SIGKILL, f"was killed by signal 9; {OFTEN}"),
        ("input()", signal.SIGTERM, "was killed by signal 15"),
        ("import os; os._exit(7)", None, "ended with code 7, without a message"),
    ],
)
def test_how_a_process_ended_is_known_to_one_that_is_not_its_parent(
    program: str, sent: signal.Signals | None, said: str
) -> None:
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    handle = handle_of(process.pid)
    if sent is not None:
        assert end_of(process.pid, handle) is None
        process.send_signal(sent)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: not yet collected
    assert end_of(process.pid) == end_of(process.pid, handle) == said
    process.communicate()
    assert end_of(process.pid) is None
    assert end_of(process.pid, handle) in (said, None)  # Linux 6.15 keeps it for who has a handle
    if handle is not None:
        os.close(handle)


def test_a_suspended_process_has_not_ended(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
    assert end_of(sleeper.pid, handle_of(sleeper.pid)) is None
