"""Curves follow the records: spikes are found, thinning keeps extremes, gaps stay."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from wikillm.report.curves import evaluations, smooth, spikes, thin
from wikillm.report.plot import Curve, Plot, _tick, svg, svg_file, ticks
from wikillm.report.run_files import RunFiles, read_run

values = st.one_of(st.none(), st.floats(-1e6, 1e6))


def run_of(folder: Path, losses: list[float | None], events: list[dict] | None = None) -> RunFiles:
    folder.mkdir(exist_ok=True)
    rows = [
        {"step": n, "tokens": 100 * n, "loss": loss, "segment": 0, "time": float(n)}
        | ({"nonfinite": {"loss": "nan"}} if loss is None else {})
        for n, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "events.jsonl").write_text(
        "".join(json.dumps(event) + "\n" for event in events or [])
    )
    return read_run(folder)


def test_the_recorded_spikes_are_listed(tmp_path: Path) -> None:
    batch = {"documents": [{"source": f"{n}.jsonl", "offset": n, "document": n} for n in range(9)]}
    spike = {"kind": "spike", "segment": 0, "time": 1.0, "loss": 9.0, "median": 2.0,
             "action": "report", "worst_micro_batch": batch}  # fmt: skip
    events = [{**spike, "step": step, "worst_step": step} for step in (2, 3)]
    run = run_of(tmp_path, [3.0, 9.0, 9.0], events)
    found = spikes(run)
    assert [(s.step, s.tokens, s.loss, s.median) for s in found] == [
        (2, 200.0, 9.0, 2.0),
        (3, 300.0, 9.0, 2.0),
    ]
    assert found[0].documents[:2] == ("0.jsonl: byte 0", "1.jsonl: byte 1")
    assert len(found[0].documents) == 4 and all(s.is_current for s in found)


def test_an_evaluation_between_two_records_is_drawn_between_them(tmp_path: Path) -> None:
    events = [
        {"kind": "eval", "step": step, "segment": 0, "time": 1.0, "eval_loss": 2.0}
        for step in (1, 3)
    ]
    run = run_of(tmp_path, [3.0, 2.0, 1.0], events)
    assert evaluations(run, "eval_loss") == [(100.0, 2.0), (300.0, 2.0)]
    rows = [
        {"step": step, "tokens": 150 * step - 500, "segment": 0, "time": 1.0} for step in (10, 20)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    between = read_run(tmp_path)
    assert [between.tokens_at(step) for step in (5, 15, 30)] == [500.0, 1750.0, 2500.0]


@given(st.lists(values, min_size=1, max_size=400), st.integers(4, 60))
def test_thinning_keeps_the_extremes_and_the_order(found: list[float | None], most: int) -> None:
    points = [(float(i), value) for i, value in enumerate(found)]
    kept = thin(points, most)
    assert len(kept) <= max(most, 2) and set(kept) <= set(points)
    assert kept == sorted(kept, key=lambda point: point[0])
    known = [value for value in found if value is not None]
    if known:
        drawn = [value for _, value in kept if value is not None]
        assert (min(drawn), max(drawn)) == (min(known), max(known))


@given(st.floats(-100, 100), st.integers(1, 300))
def test_smoothing_keeps_a_constant(value: float, count: int) -> None:
    for _, mean in smooth([(float(i), value) for i in range(count)]):
        assert mean is not None and abs(mean - value) <= 1e-9 * max(1.0, abs(value))


def test_tick_labels_are_short() -> None:
    """Small values are written short, where that tells them apart."""
    shown = [
        [_tick(value, found) for value in found]
        for found in (ticks(0, 0.00016), ticks(0, 6.9), ticks(0, 3e-8), ticks(1, 1.00002))
    ]
    assert shown == [
        ["0", "5.0e-5", "1.0e-4", "1.5e-4", "2.0e-4"],
        ["0", "2", "4", "6", "8"],
        ["0", "1.0e-8", "2.0e-8", "3.0e-8"],
        ["1.000000", "1.000005", "1.000010", "1.000015", "1.000020"],
    ]


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_are_few_and_enclose_the_values(low: float, size: float) -> None:
    found = ticks(low, low + size)
    slack = 1e-6 * max(abs(low), size, 1e-9)
    assert 2 <= len(found) <= 8
    assert found[0] <= low + slack and found[-1] >= low + size - slack


def test_a_gap_splits_the_line_and_labels_are_escaped() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 1.5), (4.0, 1.0)]
    plot = Plot("a <b>", [Curve("x</svg>", points)], marks=[(3.0, "<i>")])
    for text in (str(svg(plot)), svg_file(plot)):
        assert len(re.findall("<polyline", text)) == 2
        assert "</svg>" not in text.replace("</svg>", "", 2).replace("<svg", "")
        assert "<b>" not in text and "<i>" not in text
    assert "x&lt;/svg&gt; from 1 to 1" in str(svg(plot))
