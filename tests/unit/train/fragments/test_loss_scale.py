"""fp16: the loss scale goes on after a load.

fp16 does not train on a CPU, so DeepSpeed's own scalers are stepped here.
"""

from __future__ import annotations

import json

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from wikillm.train.fragments.counters import scaler_counters, set_scaler_counters


def dynamic() -> DynamicLossScaler:
    """Doubles after three steps without overflow, once an overflow has been forgiven."""
    return DynamicLossScaler(
        init_scale=2.0**10,
        scale_window=3,
        min_scale=1.0,
        delayed_shift=2,
        consecutive_hysteresis=False,
    )


def scales(scaler: DynamicLossScaler, overflows: list[bool]) -> list[float]:
    found = []
    for overflow in overflows:
        scaler.update_scale(overflow)
        found.append(scaler.cur_scale)
    return found


@pytest.mark.parametrize("stop", range(10))
def test_deepspeeds_scale_goes_on_as_without_the_load(
    stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 1)  # it only logs on rank 0
    overflows = [False, True, True, False, False, False, False, True, True, False]
    expected = scales(dynamic(), overflows)
    assert expected[0] > expected[2] < expected[6] > expected[8]  # down, up, down
    first = dynamic()
    scales(first, overflows[:stop])
    second = dynamic()
    set_scaler_counters(second, json.loads(json.dumps(scaler_counters(first))))
    assert scales(second, overflows[stop:]) == expected[stop:]


def test_torchs_scale_goes_on_and_takes_deepspeeds() -> None:
    first = torch.amp.GradScaler("cpu", init_scale=512.0)
    first.load_state_dict(first.state_dict() | {"_growth_tracker": 7, "scale": 64.0})
    second = torch.amp.GradScaler("cpu", init_scale=2.0)
    set_scaler_counters(second, json.loads(json.dumps(scaler_counters(first))))
    assert second.state_dict() == first.state_dict()

    set_scaler_counters(second, scaler_counters(dynamic()))
    assert second.get_scale() == 1024.0
    deepspeeds = dynamic()
    set_scaler_counters(deepspeeds, scaler_counters(first))
    assert (deepspeeds.cur_scale, deepspeeds.cur_iter) == (64.0, 0)
