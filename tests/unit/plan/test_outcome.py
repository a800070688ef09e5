"""`wikillm plan --report`: the table of predicted and measured values of finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wikillm.cli.main import main
from wikillm.plan.outcome import FILE_NAME, find_outcomes


def write(folder: Path, predicted: int | None, measured: int, speed: float | None = None) -> None:
    folder.mkdir(parents=True)
    setup = {"device": "cpu", "engine": "ZeRO-2", "ranks": 2, "parameters": 8_000_000}
    outcome = {
        "setup": setup,
        "predicted": {"memory_bytes": predicted, "tokens_per_second": speed},
        "measured": {"memory_bytes": measured, "tokens_per_second": 100.0},
    }
    (folder / FILE_NAME).write_text(json.dumps(outcome))


def test_errors_are_relative_to_the_measured_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", 110 << 20, 100 << 20, 50.0)
    write(tmp_path / "b", None, 100 << 20)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE_NAME).write_text('{"setup": {}}')
    found, broken = find_outcomes([tmp_path])
    assert [row["memory_bytes"]["error"] for row in found] == [pytest.approx(0.1), None]
    assert [row["tokens_per_second"]["error"] for row in found] == [-0.5, None]
    assert broken == [tmp_path / "broken" / FILE_NAME]
    assert main(["plan", "--report", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "memory: 1 runs, mean error 10.0%, worst +10.0%" in told.out and "broken" in told.err
    assert main(["plan", "--json", "--report", str(tmp_path / "a")]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["run"] == "a" and row["tokens_per_second"]["error"] == -0.5


def test_a_folder_without_outcomes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--report", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
