"""The log line: aligned with its header, and no wider than a terminal."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from wikillm.observe.format import LogTable

VALUES = {
    "step": 200,
    "tokens": 3_276_800,
    "loss": 6.02134,
    "learning_rate": 4.97e-4,
    "grad_norm": 1.0234,
    "tokens_per_second": 764_321.0,
    "tflops_per_device": 593.91,
    "mfu": 0.6001,
    "data_wait_fraction": 0.004,
    "memory_bytes": 11 * 2**30,
    "step_seconds": 0.4,
}


def test_the_table_of_a_gpu_run_has_mfu() -> None:
    table = LogTable(2000, 2000 * 16_384, has_mfu=True)
    header = "step/max tokens loss lr gnorm tok/s TFLOP/s MFU wait mem ETA"
    assert table.header().split() == header.split()
    cells = "200/2000 3.277M 6.0213 4.97e-04 1.023 764.3K 593.9 60.0% 0% 11 GiB 38.6s"
    assert table.line(VALUES).split() == cells.split()
    assert len(table.line(VALUES)) == len(table.header()) <= 100


def test_the_table_of_a_cpu_run_has_no_mfu() -> None:
    table = LogTable(2000, 2000 * 16_384)
    assert "MFU" not in table.header() and len(table.header()) <= 85
    assert len(table.line(VALUES)) == len(table.header())


def test_the_time_left_is_that_of_the_tokens_left() -> None:
    """Not of steps: after a resume with another batch the earlier ones had another size."""
    values = {"step": 10, "tokens": 1000, "tokens_per_second": 100.0, "step_seconds": 1.0}
    assert LogTable(20, 9000).line(values).split()[-1] == "1m20s"


def test_missing_values_are_dashes_and_nonfinite_values_are_shown() -> None:
    values = {"step": 3, "loss": math.nan, "grad_norm": math.inf, "learning_rate": None}
    line = LogTable(10, 100).line(values)
    assert line.split() == ["3/10", "-", "nan", "-", "inf", "-", "-", "-", "-"]


READING = st.fixed_dictionaries(
    {
        "step": st.integers(0, 999_999),
        "tokens": st.integers(0, 10**13),
        "loss": st.floats(0, 99),
        "grad_norm": st.floats(0, 1e30),
        "tokens_per_second": st.floats(0.1, 1e9),
        "memory_bytes": st.integers(0, 2**40),
        "data_wait_fraction": st.floats(0, 1),
        "learning_rate": st.floats(0, 1),
        "mfu": st.floats(0, 1),
        "step_seconds": st.floats(0, 100),
    }
)


@given(READING)
def test_every_line_is_as_long_as_the_header(values: dict[str, float]) -> None:
    seconds = (1_000_000 - values["step"]) * values["step_seconds"]
    tokens_left = int(seconds * values["tokens_per_second"])
    table = LogTable(1_000_000, int(values["tokens"]) + tokens_left, has_mfu=True)
    line = table.line(values)
    assert len(line) <= len(table.header()) + 2  # a run of more than 1000 hours may push the ETA
    assert line[: len(table.header()) - 8].rstrip() == line[: len(table.header()) - 8]
