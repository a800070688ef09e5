"""The garbage collector runs at the steps that all ranks share, and is restored."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from wikillm.train.callbacks.garbage import GarbageCallback


class Cycle:
    def __init__(self) -> None:
        self.me = self


def survives(callback: GarbageCallback, step: int, *, saves: bool = False) -> bool:
    lost = weakref.ref(Cycle())
    control: Any = SimpleNamespace(should_save=saves, should_evaluate=False)
    callback.on_step_end(None, SimpleNamespace(global_step=step), control)  # type: ignore[arg-type]
    return lost() is not None


@pytest.mark.parametrize("was_enabled", [True, False])
def test_cycles_are_collected_at_shared_steps_only(was_enabled: bool) -> None:
    callback = GarbageCallback(every=4)
    (gc.enable if was_enabled else gc.disable)()
    try:
        callback.on_train_begin(None, None, None)  # type: ignore[arg-type]
        assert not gc.isenabled()
        assert survives(callback, 3)
        assert not survives(callback, 4)
        assert not survives(callback, 5, saves=True)
        callback.close()
        assert gc.isenabled() == was_enabled
        assert not was_enabled or gc.get_freeze_count() == 0
    finally:
        gc.unfreeze()
        gc.enable()
