"""fp16: the loss scale goes on after a load, and weights enter DeepSpeed's fused optimizer.

fp16 does not train on a CPU, so DeepSpeed's own scalers are stepped here, and its fused optimizer
steps in bf16.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaleConfig
from torch import nn

from wikillm.train.fragments.counters import (
    scaler_counters,
    set_scaler_counters,
)
from wikillm.train.fragments.state import TrainingState


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


def fused(model: nn.Module) -> FP16_Optimizer:
    scale = LossScaleConfig(torch.bfloat16, False, 1.0, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return FP16_Optimizer(
        optimizer, loss_scale_config=scale, low_precision_dtype=torch.bfloat16, clip_grad=0.0
    )


def test_the_fused_optimizers_flat_copies_go_on_bit_by_bit() -> None:
    def model() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(torch.bfloat16)

    def step(of: nn.Module, optimizer: FP16_Optimizer) -> torch.Tensor:
        loss = of(torch.ones(2, 5, dtype=torch.bfloat16)).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    straight = model()
    optimizer = fused(straight)
    for _ in range(3):
        step(straight, optimizer)
    state = TrainingState(straight, SimpleNamespace(optimizer=optimizer))
    saved = {part.spec: part.values.clone() for part in state.fragments()}
    assert set(saved) == set(state.specs())

    loaded = model()
    other = fused(loaded)
    fresh = TrainingState(loaded, SimpleNamespace(optimizer=other))
    fresh.load(lambda spec, start, stop: saved[spec][start:stop], state.counters())
    for _ in range(3):
        assert torch.equal(step(loaded, other), step(straight, optimizer))
    assert all(map(torch.equal, loaded.parameters(), straight.parameters()))
