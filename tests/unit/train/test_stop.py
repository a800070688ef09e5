"""What ends a run: overflow in a row, numbers that are not finite."""

from __future__ import annotations

import pytest

from wikillm.core.errors import DivergedError
from wikillm.train.callbacks.stop import SkipCounter


def test_skipped_steps_in_a_row_end_the_run_and_others_do_not() -> None:
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
