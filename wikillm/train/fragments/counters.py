"""Counts beside the tensors: optimizer steps, DeepSpeed's steps and samples, loss scale, schedule.

DeepSpeed's count of micro-steps is not saved: it only finds the end of an optimizer step, and
checkpoints are written between optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from wikillm.core.errors import CheckpointError

_ENGINE = ("global_steps", "global_samples", "skipped_steps")
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def optimizer_step(states: Iterable[Mapping[str, Any]]) -> int:
    """Steps in the optimizer's state, for AdamW's bias correction; 0 before the first step.

    Raises CheckpointError if parameters have different counts, which flat partitions cannot hold.
    """
    steps = sorted({int(state["step"]) for state in states if "step" in state})
    if len(steps) > 1:
        raise CheckpointError(
            "Parameters differ in their number of optimizer steps.",
            got=f"{steps[0]} to {steps[-1]}",
        )
    return steps[0] if steps else 0


def as_stored(step: int, optimizer: Any, group: Mapping[str, Any], device: Any) -> Any:
    """`step` as this optimizer stores it: torch's AdamW in a tensor, DeepSpeed's as an int."""
    adam = getattr(optimizer, "aux_optimizer", None) or optimizer
    if not type(adam).__module__.startswith(("torch.optim", "wikillm")):
        return step
    on_device = group.get("capturable") or group.get("fused")
    return torch.tensor(float(step), dtype=torch.float32, device=device if on_device else "cpu")


def engine_counters(engine: Any) -> dict[str, int]:
    return {name: int(getattr(engine, name)) for name in _ENGINE}


def set_engine_counters(engine: Any, counters: Mapping[str, Any]) -> None:
    """Set DeepSpeed's counts; for a checkpoint of a run without DeepSpeed, derive them."""
    step = counters["optimizer_step"]
    derived = {"global_steps": step, "global_samples": step * engine.train_batch_size()}
    for name, value in {**derived, **counters.get("deepspeed", {})}.items():
        setattr(engine, name, value)


def loss_scaler_of(optimizer: Any, scaler: torch.amp.GradScaler | None) -> Any:
    """The fp16 loss scaler: DeepSpeed's, its autocast's, or `scaler`; None without one."""
    autocast = getattr(optimizer, "torch_autocast_gradscaler", None)
    if autocast is not None or scaler is not None:
        return autocast or scaler
    config = getattr(optimizer, "loss_scale_config", None)
    if config is not None:
        return config if config.dynamic_loss_scale else None
    own_scaler = getattr(optimizer, "loss_scaler", None)
    return own_scaler if getattr(own_scaler, "dynamic", False) else None


def scaler_counters(scaler: Any) -> dict[str, Any]:
    """The scale, and the counts that decide its next change."""
    if isinstance(scaler, torch.amp.GradScaler):
        state = scaler.state_dict()
        return {"cur_scale": state["scale"], "growth_tracker": state["_growth_tracker"]}
    return {name: getattr(scaler, name) for name in _SCALER if hasattr(scaler, name)}


def set_scaler_counters(scaler: Any, counters: Mapping[str, Any]) -> None:
    """Set the counts that this kind of scaler has; its other counts start anew."""
    if isinstance(scaler, torch.amp.GradScaler):
        state = {"scale": counters["cur_scale"]}
        if "growth_tracker" in counters:
            state["_growth_tracker"] = counters["growth_tracker"]
        scaler.load_state_dict(scaler.state_dict() | state)
        return
    for name in _SCALER:
        if name in counters and hasattr(scaler, name):
            setattr(scaler, name, counters[name])
