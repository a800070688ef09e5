"""Which process is rank N, and that nobody else is ever taken for it: records, stop, status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError
from wikillm.supervise.records import Process, RankRecord, Recorder, read_records, stop_path, write_record
from wikillm.supervise.stop import end_here, is_running, stop


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def record(process: Process, rank: int = 0, **more: object) -> RankRecord:
    made = RankRecord(rank, rank, 2, process, "eth0", "step", 7, 0.5, 5.0, time.time())
    return replace(made, **more)  # type: ignore[arg-type]


def test_a_number_given_to_somebody_else_is_not_the_run(sleeper: subprocess.Popen[bytes]) -> None:
    """The same pid with another start time, boot or host: not alive, and never killed."""
    ours = Process.here(sleeper.pid)
    assert ours.is_alive() and is_running(record(ours))
    for other in (replace(ours, started=ours.started - 1), replace(ours, boot="another"), replace(ours, host="node9")):
        assert not other.is_alive()
        assert not end_here(record(other))
    assert sleeper.poll() is None
    assert end_here(record(ours))
    assert sleeper.wait(10) == -signal.SIGKILL
    assert not ours.is_alive()


def test_a_zombie_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = Process.here(process.pid)
    process.kill()
    deadline = time.monotonic() + 10
    while known.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not known.is_alive()
    process.communicate()


def test_a_rank_of_another_machine_is_judged_by_its_records_age(sleeper: subprocess.Popen[bytes]) -> None:
    there = replace(Process.here(sleeper.pid), host="node9")
    now = time.time()
    assert is_running(record(there, time=now - 10), now)
    assert not is_running(record(there, time=now - 60), now)
    assert not is_running(record(there, exit={"code": 0, "reason": ""}), now)


def test_records_of_a_larger_earlier_run_do_not_count(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    here = Process.here(sleeper.pid)
    write_record(tmp_path, record(here, rank=3, world_size=4, time=time.time() - 100))
    for rank in (0, 1):
        write_record(tmp_path, record(here, rank=rank))
    (tmp_path / "ranks" / "rank_2.json").write_text('{"rank":')
    assert [found.rank for found in read_records(tmp_path)] == [0, 1]


def test_stop_asks_through_the_directory_and_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    here, asked = Process.here(sleeper.pid), []
    told: dict[str, object] = {}

    def obey(at_once: bool) -> None:
        asked.append(at_once)
        told.update(code=75, reason="asked")
        sleeper.kill()
        sleeper.wait()

    mark = tmp_path / "mark"  # our sbatch names one, and does not queue the job again when it finds it
    monkeypatch.setenv("WIKILLM_STOP_MARK", str(mark))
    writer = Recorder(tmp_path, lambda: record(here, exit=dict(told) or None, interval=0.0), obey)
    writer.start()
    try:
        deadline = time.monotonic() + 10
        while not read_records(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not mark.exists()
        result = stop(tmp_path, at_once=False, timeout=20, on_wait=lambda running: None)
    finally:
        writer.close(record(here, exit={"code": 75, "reason": "asked"}))
    assert asked == [False] and json.loads(stop_path(tmp_path).read_text())["now"] is False
    assert [r.rank for r in result.over] == [0] and not result.left and mark.exists()
    with pytest.raises(ConfigError, match="Nothing runs"):
        stop(tmp_path, at_once=False, timeout=1, on_wait=lambda running: None)


def test_what_does_not_answer_is_named(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path, record(Process.here(sleeper.pid)))
    assert main(["stop", str(tmp_path), "--wait", "0.1"]) == 3
    assert f"rank 0: pid {sleeper.pid}" in capsys.readouterr().err
    assert main(["stop", str(tmp_path), "--wait", "20", "--now"]) == 0  # nobody hears it: it is killed after 5 s
    assert sleeper.wait(1) == -signal.SIGKILL


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
    (tmp_path / "exit.json").write_text(json.dumps({"code": 3, "meaning": "machine", "reason": "lost", "step": 7}))
    assert main(["status", str(tmp_path)]) == 0
    assert "exit       3 at step 7: lost" in capsys.readouterr().out
