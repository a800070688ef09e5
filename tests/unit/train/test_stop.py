"""Steps that fp16 skips: only a series of them ends the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wikillm.core.errors import DivergedError
from wikillm.train.callbacks.stop import SkipCounter, StopCallback


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


def test_steps_that_were_skipped_before_a_resume_do_not_count() -> None:
    """DeepSpeed's engine continues the count of the checkpoint, here 5."""
    engine = SimpleNamespace(skipped_steps=5)
    train = SimpleNamespace(max_skipped_steps=1)
    config = SimpleNamespace(config=SimpleNamespace(train=train))
    signals = SimpleNamespace(defer=lambda: None)
    context = SimpleNamespace(resolved=config, signals=signals)
    trainer: Any = SimpleNamespace(context=context, model_wrapped=engine)
    stop = StopCallback(trainer)
    stop.on_train_begin(None, None, None)
    assert not stop._skips.step(engine.skipped_steps)
    with pytest.raises(DivergedError, match="1 optimizer steps in a row"):
        stop._skips.step(engine.skipped_steps + 1)
