"""The ranges of the training state's tensors that each rank writes, and how they are read.

No type here knows an engine: a checkpoint is written and read in these terms alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from wikillm.checkpoints.tensor_layout import TensorSpec


@dataclass(frozen=True, slots=True)
class Fragment:
    """A range of one tensor that this rank writes.

    Attributes:
        start: first element, in the flattened tensor.
        values: 1-D float32, a view of the live state where it is stored as float32.
    """

    spec: TensorSpec
    start: int
    values: torch.Tensor


Read = Callable[[TensorSpec, int, int], torch.Tensor]
"""(spec, start, stop) -> those elements of the flattened tensor, 1-D float32 on the CPU."""


class TrainingState(Protocol):
    """Weights and optimizer state of an engine, to be written and filled by ranges."""

    def specs(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the state; the same on all ranks."""

    def fragments(self, kind: str | None = None) -> list[Fragment]:
        """What this rank writes, of one kind or of all: every element is in one rank's fragment."""

    def counters(self) -> dict[str, Any]:
        """Step counts and the loss scale as JSON values; the same on all ranks."""

    def load(self, read: Read, counters: Mapping[str, Any]) -> None:
        """Fill this rank's weights and optimizer state. (all ranks)"""
