"""The ledger's file: what a kill or a full disk leaves of it, and what replaces what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wikillm.core.errors import CheckpointError
from wikillm.ledger.record import (
    History,
    LedgerWriter,
    SkippedWindow,
    StepLine,
    read_ledger,
)

FACTS = {"checkpoint": None, "world": 1, "order": {"seed": 1}, "time": 0.0}


def line(step: int, samples: int = 8) -> StepLine:
    return StepLine(step, (step - 1) * samples, step * samples, 2**64 - step, 4.0 + step / 3)


def write(path: Path, first: int, last: int) -> LedgerWriter:
    writer = LedgerWriter(path)
    writer.begin(step=first - 1, samples=8 * (first - 1), **FACTS)
    for step in range(first, last + 1):
        writer.add(line(step))
    writer.flush(durable=True)
    return writer


def test_ledger_lines_are_read_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = write(path, 1, 3)
    window = SkippedWindow(24, 40, 'a "spike"')
    writer.add(window)
    writer.add(StepLine(4, 40, 48, 0))
    writer.flush()
    segment, *rest = read_ledger(path)
    assert segment.to_json()["segment"] == 0
    assert rest == [line(1), line(2), line(3), window, StepLine(4, 40, 48, 0)]


@pytest.mark.parametrize("torn", [1, 7, 60])
def test_a_torn_last_line_is_cut_off_at_the_next_start(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, 1, 4)
    path.write_bytes(path.read_bytes()[:-torn])
    assert History.of(read_ledger(path)).steps[-1] == line(3)
    write(path, 3, 5)
    history = History.of(read_ledger(path))
    assert history.steps == [line(step) for step in range(1, 6)]
    assert (len(history.segments), history.superseded) == (2, 1)


def test_a_return_to_an_earlier_step_supersedes_steps_and_windows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = write(path, 1, 4)
    writer.add(SkippedWindow(32, 40, "a spike"))
    writer.add(StepLine(5, 40, 48, 1))
    writer.flush()
    before = path.read_bytes()
    write(path, 3, 3)
    history = History.of(read_ledger(path))
    assert [step.step for step in history.steps] == [1, 2, 3] and not history.skipped
    assert path.read_bytes().startswith(before), "nothing is rewritten"


def test_a_damaged_ledger_is_renamed_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, 1, 4)
    damaged = path.read_bytes().replace(b'"first":8', b'"first":9')
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"damaged(.|\n)*line 3"):
        read_ledger(path)
    write(path, 5, 6)
    assert (tmp_path / "ledger.damaged-1.jsonl").read_bytes() == damaged
    assert [step.step for step in History.of(read_ledger(path)).steps] == [5, 6]
    assert "a new ledger begins" in caplog.text and "no record of steps 1 to 4" in caplog.text


def test_a_pipe_or_a_device_in_the_place_of_the_ledger_does_not_stop_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in ("pipe", "/dev/full"):
        path = tmp_path / f"{Path(target).name}.jsonl"
        path.symlink_to(target)
        writer = LedgerWriter(path)
        writer.add(line(1))
        writer.flush()
        assert "cannot be written" in capsys.readouterr().err
        with pytest.raises(CheckpointError, match="no ledger"):
            read_ledger(path)


def test_ledger_lines_are_kept_while_the_disk_refuses_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = write(path, 1, 2)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda fd, data, real=__import__("os").write: real(fd, data[:9]))
        writer.add(line(3))
        writer.flush()
    assert path.read_bytes() == before, "half a line was removed"
    writer.add(line(4))
    writer.flush()
    assert History.of(read_ledger(path)).steps == [line(step) for step in range(1, 5)]
