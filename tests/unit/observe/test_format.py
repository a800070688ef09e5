"""The log line: aligned with its header, and no wider than a terminal."""

from __future__ import annotations

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


def test_on_a_gpu() -> None:
    table = LogTable(2000, 2000 * 16_384, has_mfu=True)
    assert table.header().split() == [
        "step/max",
        "tokens",
        "loss",
        "lr",
        "gnorm",
        "tok/s",
        "TFLOP/s",
        "MFU",
        "wait",
        "mem",
        "ETA",
    ]
    cells = "200/2000 3.277M 6.0213 4.97e-04 1.023 764.3K 593.9 60.0% 0% 11 GiB 38.6s"
    assert table.line(VALUES).split() == cells.split()
    assert len(table.line(VALUES)) == len(table.header()) <= 100


def test_on_a_cpu() -> None:
    table = LogTable(2000, 2000 * 16_384)
    assert "MFU" not in table.header() and len(table.header()) <= 85
    assert len(table.line(VALUES)) == len(table.header())


def test_the_time_left_is_that_of_the_tokens_left() -> None:
    """In a batch ramp a step of now says little of the steps to come."""
    values = {"step": 10, "tokens": 1000, "tokens_per_second": 100.0, "step_seconds": 1.0}
    assert LogTable(20, 9000).line(values).split()[-1] == "1m20s"


def test_missing_and_odd_values() -> None:
    line = LogTable(10, 100).line(
        {"step": 3, "loss": float("nan"), "grad_norm": float("inf"), "learning_rate": None}
    )
    assert line.split() == ["3/10", "-", "nan", "-", "inf", "-", "-", "-", "-"]


@given(
    step=st.integers(0, 999_999),
    tokens=st.integers(0, 10**13),
    loss=st.floats(0, 99),
    norm=st.floats(0, 1e30),
    rate=st.floats(0.1, 1e9),
    memory=st.integers(0, 2**40),
    wait=st.floats(0, 1),
    lr=st.floats(0, 1),
    seconds=st.floats(0, 100),
)
def test_every_line_is_as_long_as_the_header(
    step: int,
    tokens: int,
    loss: float,
    norm: float,
    rate: float,
    memory: int,
    wait: float,
    lr: float,
    seconds: float,
) -> None:
    table = LogTable(1_000_000, tokens + int((1_000_000 - step) * seconds * rate), has_mfu=True)
    line = table.line(
        {
            "step": step,
            "tokens": tokens,
            "loss": loss,
            "grad_norm": norm,
            "tokens_per_second": rate,
            "memory_bytes": memory,
            "data_wait_fraction": wait,
            "learning_rate": lr,
            "mfu": wait,
            "step_seconds": seconds,
        }
    )
    assert len(line) <= len(table.header()) + 2  # a run of more than 1000 hours may push the ETA
    assert line[: len(table.header()) - 8].rstrip() == line[: len(table.header()) - 8]
