"""metrics.jsonl and events.jsonl: complete lines, nothing dropped, resumed runs in order."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.observe.sinks import (
    JsonlSink,
    Sample,
    finite,
    read_metrics,
    read_new_records,
    read_records,
)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_hold_logging_steps_and_nothing_else(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "run")
    sink.start({"api_key": "not written"})
    sink.log(1, {"loss": 9.5, "learning_rate": 1e-4})
    sink.log(1, {"eval_loss": 9.0}, "eval")
    sink.text(1, [Sample("中国的首都是", "北京\n\ud800")])
    sink.log(2, {"loss": np.float32(9.25)})
    sink.finish(75, "stopped")
    sink.finish(75)
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    events = lines(tmp_path / "run" / "events.jsonl")
    assert [(record["step"], record["loss"]) for record in metrics] == [(1, 9.5), (2, 9.25)]
    assert [event["kind"] for event in events] == ["start", "eval", "samples", "finish"]
    assert events[1]["eval_loss"] == 9.0 and events[3]["exit_code"] == 75
    assert events[2]["samples"] == [{"prompt": "中国的首都是", "text": "北京\n?"}]
    assert "not written" not in (tmp_path / "run" / "events.jsonl").read_text()


def test_values_that_are_not_finite() -> None:
    values = {"loss": math.nan, "grad_norm": math.inf, "tokens": 3, "mfu": None}
    plain = {"loss": None, "grad_norm": None, "tokens": 3, "mfu": None}
    assert finite(values) == {**plain, "nonfinite": {"loss": "nan", "grad_norm": "inf"}}
    assert finite({"loss": 0.0}) == {"loss": 0.0}


def test_a_resumed_run_appends_and_the_later_segment_counts(tmp_path: Path) -> None:
    for segment, (first, last) in enumerate([(1, 5), (3, 4), (4, 6)]):
        sink = JsonlSink(tmp_path)
        sink.start({})
        assert sink.segment == segment
        for step in range(first, last + 1):
            sink.log(step, {"loss": 10 * segment + step})
    assert len(lines(tmp_path / "metrics.jsonl")) == 5 + 2 + 3
    effective = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in effective] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in effective] == [1, 2, 13, 24, 25, 26]


def test_steps_that_were_undone_do_not_count(tmp_path: Path) -> None:
    """Steps 3 to 5 ran, then the run resumed from 2 and stopped after 3: 4 and 5 do not count."""
    for steps in ([1, 2, 3, 4, 5], [3]):
        sink = JsonlSink(tmp_path)
        sink.start({})
        for step in steps:
            sink.log(step, {"loss": 1.0})
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@given(kept=st.integers(0, 3), torn=st.binary(max_size=200).filter(lambda data: b"\n" not in data))
def test_a_torn_line_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, kept: int, torn: bytes
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    whole = b"".join(b'{"step":%d,"segment":0,"loss":1.0}\n' % step for step in range(kept))
    (folder / "metrics.jsonl").write_bytes(whole + torn)
    sink = JsonlSink(folder)
    sink.start({})
    assert (folder / "metrics.jsonl").read_bytes() == whole
    start = lines(folder / "events.jsonl")[0]
    assert start.get("torn_bytes_removed") == ({"metrics.jsonl": len(torn)} if torn else None)
    sink.log(kept, {"loss": 2.0})
    assert len(lines(folder / "metrics.jsonl")) == kept + 1


@pytest.mark.parametrize("tail", [b"x" * 200_000, b"\0" * 4096 + b"\n"], ids=["torn", "zeros"])
def test_a_damaged_tail_is_skipped(tmp_path: Path, tail: bytes) -> None:
    """A line that is longer than a block of the search, and zeros after a power cut."""
    (tmp_path / "events.jsonl").write_bytes(b'{"kind":"start","segment":4}\n' + tail)
    sink = JsonlSink(tmp_path)
    sink.start({})
    assert sink.segment == 5
    kinds = [event["kind"] for event in read_records(tmp_path / "events.jsonl")]
    assert kinds == ["start", "start"]


@pytest.mark.parametrize("target", ["/dev/full", "/dev/null/file", "pipe"])
def test_a_file_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """A device has no end, and a pipe without a reader blocks whoever opens it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "metrics.jsonl").symlink_to(target)
    sink = JsonlSink(tmp_path)
    sink.start({})
    sink.log(1, {"loss": 1.0})
    sink.log(2, {"loss": 1.0})
    assert capsys.readouterr().err.count("metrics.jsonl cannot be written") == 1
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_new_records(tmp_path / "metrics.jsonl", 0) == ([], 0)


def test_a_folder_that_is_a_file_does_not_stop_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("")
    sink = JsonlSink(tmp_path / "run")
    sink.start({})
    sink.log(1, {"loss": 1.0})
    sink.finish(0)
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
