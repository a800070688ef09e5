"""The training state of any engine: its tensors, this rank's part of them, and how to load it.

The weights are the float32 master weights; on load a model's 16-bit weights are rounded from them.
If an engine keeps everything on every rank, each rank writes an equal part of the elements of
every kind, and reads everything, tensor by tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from wikillm.checkpoints.tensor_layout import TensorSpec
from wikillm.core.errors import CheckpointError, ConfigError
from wikillm.train.fragments import counters as counts
from wikillm.train.fragments.layout import (
    STATE_KEYS,
    Layout,
    Slot,
    replicated_layout,
    zero3_layout,
    zero12_layout,
)

KINDS: tuple[str, ...] = ("weight", "exp_avg", "exp_avg_sq", "momentum")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A range of one tensor that this rank writes.

    Attributes:
        start: first element, in the flattened tensor.
        values: 1-D float32; a view of the live state if that is float32, else a copy.
    """

    spec: TensorSpec
    start: int
    values: torch.Tensor


Read = Callable[[TensorSpec, int, int], torch.Tensor]
"""(spec, start, stop) -> those elements of the flattened tensor, 1-D float32 on the CPU."""


def part_of_rank(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """The elements [first, stop) of `total` that a rank writes. Sizes differ by at most one."""
    return total * rank // world_size, total * (rank + 1) // world_size


def _layout(module: nn.Module, engine: Any, optimizer: Any) -> Layout:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    stage = engine.zero_optimization_stage() if engine is not None else 0
    if stage == 3:
        layout = zero3_layout(names, optimizer)
    elif stage > 0:
        layout = zero12_layout(names, optimizer)
    else:
        layout = replicated_layout(names, optimizer)
    untrained = [name for name in names.values() if name not in layout.slots]
    if untrained:
        raise ConfigError(
            "Checkpoints need every parameter in the optimizer.",
            got=f"not trained: {', '.join(untrained[:5])}",
        )
    return layout


class TrainingState:
    """Weights and optimizer state of an engine, written and filled by ranges of whole tensors.

    Views become stale when the engine replaces its tensors.

    Args:
        model: DeepSpeed's engine, DDP's wrapper, or the model itself; prepared for training.
        optimizer: the model's optimizer or accelerate's wrapper of it; unused under DeepSpeed.
        scheduler: torch's scheduler, whose step count is saved; `StartSettings.reapply` sets rates.
        scaler: loss scaler in fp16 without DeepSpeed.

    Raises ConfigError for an engine or optimizer whose state checkpoints cannot hold.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        scheduler: Any = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        is_engine = hasattr(model, "zero_optimization_stage")
        self._engine: Any = model if is_engine else None
        owner: Any = model if is_engine else optimizer
        optimizer = getattr(owner, "optimizer", owner)
        module = getattr(model, "module", model)
        layout = _layout(module, self._engine, optimizer)
        self._layout = layout
        self._scheduler = scheduler
        self._scaler = counts.loss_scaler_of(optimizer, scaler)
        self._specs = tuple(
            TensorSpec(kind, name, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for kind in KINDS
            for name, parameter in module.named_parameters()
            if kind == "weight" or kind in layout.slots[name].kinds
        )
        self._totals: Counter[str] = Counter()
        for spec in self._specs:
            self._totals[spec.kind] += spec.numel

    def specs(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the state; the same on all ranks."""
        return self._specs

    def fragments(self, kind: str | None = None) -> list[Fragment]:
        """The fragments that this rank writes, of one kind or all.

        Every element of the state is in exactly one rank's fragment.
        """
        is_group = dist.is_available() and dist.is_initialized()
        rank = dist.get_rank() if is_group else 0
        world_size = dist.get_world_size() if is_group else 1
        before: Counter[str] = Counter()
        found = []
        for spec in self._specs:
            slot = self._layout.slots[spec.name]
            begin = slot.start
            end = slot.start + slot.count
            if self._layout.is_replicated:
                first, stop = part_of_rank(self._totals[spec.kind], rank, world_size)
                begin = max(begin, first - before[spec.kind])
                end = min(end, stop - before[spec.kind])
            if begin < end and kind in (None, spec.kind):
                found.append(Fragment(spec, begin, self._values(spec.kind, slot, begin, end)))
            before[spec.kind] += spec.numel
        return found

    def counters(self) -> dict[str, Any]:
        """Step counts and the loss scale as JSON values; the same on all ranks."""
        counters_now: dict[str, Any] = {"optimizer_step": counts.optimizer_step(self._states())}
        if self._engine is not None:
            counters_now["deepspeed"] = counts.engine_counters(self._engine)
        if self._scaler is not None:
            counters_now["loss_scaler"] = counts.scaler_counters(self._scaler)
        if self._scheduler is not None:
            counters_now["scheduler"] = {"last_epoch": self._scheduler.last_epoch}
        return counters_now

    @torch.no_grad()
    def load(self, read: Read, counters: Mapping[str, Any]) -> None:
        """Fill this rank's weights and optimizer state. (all ranks)"""
        # An optimizer makes its state at its first step: make it here, with the loaded step.
        for slot in self._layout.slots.values():
            self._make_state(slot, counters["optimizer_step"])
        for spec in self._specs:
            slot = self._layout.slots[spec.name]
            start = slot.start
            stop = slot.start + slot.count
            if spec.kind == "momentum" and slot.whole_momentum is not None:
                start = 0
                stop = spec.numel
            if start < stop:
                self._view(spec.kind, slot, start, stop).copy_(read(spec, start, stop))
        self._layout.publish()
        if self._engine is not None:
            counts.set_engine_counters(self._engine, counters)
        if self._scaler is not None and "loss_scaler" in counters:
            counts.set_scaler_counters(self._scaler, counters["loss_scaler"])
        if self._scheduler is not None and "scheduler" in counters:
            self._scheduler.last_epoch = counters["scheduler"]["last_epoch"]
            self._scheduler._step_count = self._scheduler.last_epoch + 1

    def _states(self) -> list[Mapping[str, Any]]:
        state = self._layout.optimizer.state
        return [state[slot.tensor] for slot in self._layout.slots.values() if slot.tensor in state]

    def _make_state(self, slot: Slot, step: int) -> None:
        optimizer: Any = self._layout.optimizer
        tensor = slot.tensor
        is_fp32 = getattr(optimizer, "fp32_optimizer_states", True)  # DeepSpeedCPUAdam has it
        dtype = torch.float32 if is_fp32 else tensor.dtype
        state = optimizer.state[tensor]
        for kind in slot.kinds:
            if kind == "momentum" and slot.count == 0:
                continue
            if kind != "momentum":
                state["step"] = counts.as_stored(step, optimizer, slot.group, tensor.device)
            key = STATE_KEYS[kind]
            shape = slot.state_shape(kind)
            if key not in state or tuple(state[key].shape) != shape:
                state[key] = torch.zeros(shape, dtype=dtype, device=tensor.device)

    def _view(self, kind: str, slot: Slot, start: int, stop: int) -> torch.Tensor:
        whole = slot.tensor
        if kind != "weight":
            whole = self._layout.optimizer.state[slot.tensor][STATE_KEYS[kind]]
        position = slot.position(kind)
        return whole.detach().view(-1)[position + start : position + stop]

    def _values(self, kind: str, slot: Slot, start: int, stop: int) -> torch.Tensor:
        state = self._layout.optimizer.state.get(slot.tensor, {})
        if kind != "weight" and STATE_KEYS[kind] not in state:
            if self._engine is not None and self._engine.global_steps > self._engine.skipped_steps:
                # After a step the state must exist: do not save zeros in its place.
                raise CheckpointError(f"DeepSpeed's optimizer has no {STATE_KEYS[kind]} here.")
            return torch.zeros(stop - start)
        return self._view(kind, slot, start, stop).float()
