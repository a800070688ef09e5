"""A moving average of the weights: each rank averages the ranges of the weights that it writes.

average = decay x average + (1 - decay) x weights, in float32, over the float32 master weights of
any engine. The average takes 4 bytes per parameter, divided over the ranks.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from wikillm.checkpoints.tensor_layout import TensorSpec
from wikillm.train.fragments.state import Fragment, Read, TrainingState


class WeightAverage:
    """The average of one engine's weights, as further tensors of its state.

    Attributes:
        parts: this rank's ranges of the average. With a small model a rank may have none.
        has_begun: whether there is an average to save; the same on all ranks.
    """

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self.parts: list[Fragment] = []
        self.has_begun = False

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Update the average with the present weights. The first call copies the weights."""
        weights = self._state.fragments("weight")
        if not self.has_begun:
            self.parts = [self._average_of(part, part.values.clone()) for part in weights]
            self.has_begun = True
            return
        for part, weight in zip(self.parts, weights, strict=True):
            part.values.lerp_(weight.values, 1 - decay)

    def specs(self) -> tuple[TensorSpec, ...]:
        """The whole tensors of the average; the same on all ranks."""
        weights = [spec for spec in self._state.specs() if spec.kind == "weight"]
        return tuple(replace(spec, kind="average") for spec in weights)

    def load(self, read: Read) -> None:
        """Continue a stored average, written by any number of ranks and any engine."""
        self.parts = []
        for weight in self._state.fragments("weight"):
            part = self._average_of(weight, torch.empty_like(weight.values))
            part.values.copy_(read(part.spec, part.start, part.start + part.values.numel()))
            self.parts.append(part)
        self.has_begun = True

    @staticmethod
    def _average_of(weight: Fragment, values: torch.Tensor) -> Fragment:
        return Fragment(replace(weight.spec, kind="average"), weight.start, values)
