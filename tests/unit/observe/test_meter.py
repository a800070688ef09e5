"""The meter on a simulated clock: rates, waiting, pauses, resume."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.observe import names
from wikillm.observe.meter import Meter, peak_memory


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_rates_and_mfu_are_those_of_the_window() -> None:
    clock = Clock()
    meter = Meter(4, flops_per_token=1e9, peak_flops=1e12, clock=clock)
    meter.start()
    for _ in range(5):
        clock.sleep(2.0)
        meter.step(8000)
    reading = meter.read()
    assert reading[names.TOKENS] == 40_000 and reading[names.TOKENS_PER_SECOND] == 4000
    assert reading[names.TOKENS_PER_SECOND_PER_DEVICE] == 1000
    assert reading[names.TFLOPS_PER_DEVICE] == 1.0 and reading[names.MFU] == 1.0
    assert reading[names.STEP_SECONDS] == 2.0 and reading[names.TRAIN_SECONDS] == 10.0
    clock.sleep(1.0)
    meter.step(1000)
    second = meter.read()
    assert second[names.TOKENS] == 41_000
    assert second[names.TOKENS_PER_SECOND] == 1000, "a new window begins"


def test_pauses_do_not_count() -> None:
    clock = Clock()
    meter = Meter(1, clock=clock)
    meter.start()
    clock.sleep(1.0)
    with meter.pause():
        clock.sleep(50.0)
        with meter.pause():
            clock.sleep(50.0)
        clock.sleep(50.0)
    clock.sleep(1.0)
    meter.step(100)
    assert meter.read()[names.TOKENS_PER_SECOND] == 50
    meter.stop()
    clock.sleep(1000.0)
    with meter.pause():  # a pause does not start a stopped meter
        clock.sleep(1.0)
    assert meter.read()[names.TRAIN_SECONDS] == 2.0


def test_the_share_of_waiting_counts_only_while_training() -> None:
    clock = Clock()
    meter = Meter(1, clock=clock)
    meter.add_wait(5.0)  # before training: does not count
    meter.start()
    for _ in range(3):
        meter.add_wait(0.25)
        clock.sleep(1.0)
        meter.step(1)
    assert meter.read()[names.DATA_WAIT_FRACTION] == pytest.approx(0.25)


def test_a_resumed_meter_continues() -> None:
    clock = Clock()
    meter = Meter(2, tokens=10**12, train_seconds=3600.0, clock=clock)
    meter.start()
    clock.sleep(1.0)
    meter.step(500)
    reading = meter.read()
    assert (reading[names.TOKENS], reading[names.TRAIN_SECONDS]) == (10**12 + 500, 3601.0)
    assert reading[names.TOKENS_PER_SECOND] == 500


def test_unknown_values_are_absent() -> None:
    reading = Meter(1, clock=Clock()).read()
    assert set(reading) == {names.TOKENS, names.MEMORY_BYTES, names.TRAIN_SECONDS}
    clock = Clock()
    on_cpu = Meter(1, flops_per_token=1e9, clock=clock)
    on_cpu.start()
    clock.sleep(1.0)
    on_cpu.step(10)
    values = on_cpu.read()
    assert names.MFU not in values and values[names.TFLOPS_PER_DEVICE] == 0.01
    known = {value for name, value in vars(names).items() if name.isupper()}
    assert set(values) <= known, "every field has its name in names.py"


STEP = st.tuples(st.floats(0.001, 100), st.integers(1, 10**6), st.booleans())


@given(st.lists(STEP, min_size=1, max_size=30))
def test_windows_add_up_to_the_whole(steps: list[tuple[float, int, bool]]) -> None:
    clock = Clock()
    meter = Meter(1, clock=clock)
    meter.start()
    counted = 0.0
    seconds = 0.0
    for length, tokens, reads in steps:
        clock.sleep(length)
        meter.step(tokens)
        if reads:
            reading = meter.read()
            counted += reading[names.TOKENS_PER_SECOND] * (reading[names.TRAIN_SECONDS] - seconds)
            seconds = reading[names.TRAIN_SECONDS]
            assert reading[names.STEP_SECONDS] > 0
    last = meter.read()
    counted += last.get(names.TOKENS_PER_SECOND, 0.0) * (last[names.TRAIN_SECONDS] - seconds)
    assert math.isclose(counted, sum(tokens for _, tokens, _ in steps), rel_tol=1e-6)
    assert math.isclose(
        last[names.TRAIN_SECONDS], sum(length for length, _, _ in steps), rel_tol=1e-6
    )


def test_resident_memory_is_in_bytes() -> None:
    assert 2**23 < peak_memory(uses_gpu=False) < 2**40
