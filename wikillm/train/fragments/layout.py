"""Where a rank holds its ranges of the parameters, in the terms of every engine.

An engine updates float32 master weights: the model's own parameters, copies of them, or flat
tensors with ranges of many. They are the keys of the optimizer's state, which has their shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wikillm.core.errors import ConfigError

STATE_KEYS: Mapping[str, str] = {
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
    "momentum": "momentum_buffer",
}
"""Names in the optimizer's state."""


@dataclass(frozen=True, slots=True)
class WholeMomentum:
    """Muon's momentum of whole matrices, one after the other: where one begins, and all elements.

    ZeRO 1 and 2 keep it so: a matrix on two ranks has its whole momentum on both.
    """

    offset: int
    numel: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A range of one parameter on this rank.

    Attributes:
        tensor: float32 master weights; the key of their state in the optimizer.
        offset: of the range in `tensor`, flattened.
        start: of the range in the parameter, flattened.
        count: elements; 0 where this rank holds none of the parameter.
        group: options of the parameter in the optimizer.
    """

    tensor: torch.Tensor
    offset: int
    start: int
    count: int
    group: Mapping[str, Any]
    whole_momentum: WholeMomentum | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The state that the optimizer keeps for the parameter."""
        if self.group.get("use_muon"):
            return ("momentum",)
        if "betas" not in self.group or self.group.get("amsgrad"):
            raise ConfigError(
                "Checkpoints hold the state of AdamW and Muon only.",
                got=f"an optimizer with the options {', '.join(sorted(self.group))}",
                fix="train.optimizer=adamw or muon, without an optimizer in the DeepSpeed file",
            )
        return ("exp_avg", "exp_avg_sq")

    def state_shape(self, kind: str) -> tuple[int, ...]:
        """Of the optimizer's state of that kind, for all of `tensor`."""
        if kind == "momentum" and self.whole_momentum is not None:
            return (self.whole_momentum.numel,)
        return tuple(self.tensor.shape)

    def position(self, kind: str) -> int:
        """Where the parameter's first element would lie in the weights or state of that kind."""
        if kind == "momentum" and self.whole_momentum is not None:
            return self.whole_momentum.offset
        return self.offset - self.start


@dataclass(frozen=True, slots=True)
class Layout:
    """What one rank holds.

    Attributes:
        optimizer: the one with the state, inside all wrappers.
        slots: by name of the parameter, every parameter.
        is_replicated: whether all ranks hold the same, whole.
        publish: writes changed master weights to the model. (all ranks)
    """

    optimizer: torch.optim.Optimizer
    slots: Mapping[str, Slot]
    is_replicated: bool
    publish: Callable[[], None]
