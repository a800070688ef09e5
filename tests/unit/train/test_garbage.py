"""The collector runs at the steps all ranks share, and is given back."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

from wikillm.train.callbacks.garbage import GarbageCallback


class Cycle:
    def __init__(self) -> None:
        self.me = self


def step(callback: GarbageCallback, number: int, **control: bool) -> None:
    flags = {"should_save": False, "should_evaluate": False} | control
    state: Any = SimpleNamespace(global_step=number)
    callback.on_step_end(None, state, SimpleNamespace(**flags))  # type: ignore[arg-type]


def test_cycles_go_at_the_shared_steps_only() -> None:
    callback = GarbageCallback(every=4)
    callback.on_train_begin(None, None, None)  # type: ignore[arg-type]
    try:
        assert not gc.isenabled()
        lost = weakref.ref(Cycle())
        step(callback, 3)
        assert lost() is not None
        step(callback, 4)
        assert lost() is None
        lost = weakref.ref(Cycle())
        step(callback, 5, should_save=True)
        assert lost() is None
    finally:
        callback.close()
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        callback = GarbageCallback()
        callback.on_train_begin(None, None, None)  # type: ignore[arg-type]
        callback.close()
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()
