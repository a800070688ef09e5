"""Peak memory of training alone, on this process for real."""

from __future__ import annotations

import numpy as np

from wikillm.observe.peak_memory import PeakMemory

SIZE = 96 << 20


def test_memory_before_the_start_does_not_count_and_freed_memory_does() -> None:
    before = np.ones(SIZE, np.uint8)
    del before
    peak = PeakMemory(uses_gpu=False)
    if peak.is_reset:
        assert peak.whole < SIZE // 2
    held = np.ones(SIZE, np.uint8)
    del held
    assert 0.9 * SIZE < peak.whole < 1.5 * SIZE


def test_a_pause_ends_the_training_part() -> None:
    peak = PeakMemory(uses_gpu=False)
    peak.step_done(pauses=False)
    kept = np.ones(SIZE, np.uint8)
    peak.step_done(pauses=True)
    more = np.ones(2 * SIZE, np.uint8)
    peak.step_done(pauses=False)
    assert 0.9 * SIZE < peak.training < 1.5 * SIZE
    assert peak.whole > 2.5 * SIZE
    del kept, more
