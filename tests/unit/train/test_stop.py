"""Steps that fp16 skips: only a series of them ends the run."""

from __future__ import annotations

import pytest

from wikillm.core.errors import DivergedError
from wikillm.train.callbacks.stop import SkipCounter


def test_only_a_series_of_skipped_steps_ends_the_run() -> None:
    counter = SkipCounter(limit=3)
    assert [counter.step(total) for total in (0, 1, 2, 2, 3, 4)] == [
        False,
        True,
        True,
        False,
        True,
        True,
    ]
    with pytest.raises(DivergedError, match="3 optimizer steps in a row overflowed fp16"):
        counter.step(5)
