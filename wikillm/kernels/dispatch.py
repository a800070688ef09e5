"""Chooses the implementation of the loss for a device, and the number of rows per chunk.

`auto` selects the chunked operation, `stock` keeps the model's own code, and the other names are
experiments (`experimental.registry`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wikillm.core.errors import MachineError
from wikillm.experimental.registry import LOSSES
from wikillm.kernels.chunks import loss_chunk_rows
from wikillm.kernels.linear_cross_entropy import linear_cross_entropy

Loss = Callable[..., torch.Tensor]  # the arguments of `linear_cross_entropy`
_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Implementation:
    """A chosen implementation.

    Attributes:
        name: a value of train.loss_kernel, or "tiled" for MLPs.
        chunk_rows: rows in memory at a time; half of it for the loss on a CPU in 16 bit.
        reason: phrase for the log.
    """

    name: str
    chunk_rows: int
    reason: str

    def __str__(self) -> str:
        rows = "all rows" if self.name == "stock" else f"at most {self.chunk_rows:,} rows"
        return f"{self.name}, {rows} ({self.reason})"


def choose_linear_cross_entropy(
    wanted: str, *, rows: int, vocab: int, device_type: str
) -> Implementation:
    """The implementation for `rows` tokens per micro-step. Pure, so all ranks choose the same."""
    if wanted == "stock":
        return Implementation("stock", rows, "as asked")
    if wanted == "auto" and device_type not in _DEVICES:
        return Implementation("stock", rows, f"no fused implementation for {device_type}")
    return Implementation(
        "chunked" if wanted == "auto" else wanted,
        loss_chunk_rows(rows, vocab, device_type),
        f"of {rows:,} over {vocab:,} tokens on {device_type}",
    )


def check_loss_kernel(wanted: str, *, hidden: int, vocab: int, device_type: str) -> None:
    """Raise MachineError if train.loss_kernel=`wanted` does not run for these sizes."""
    missing: list[str] = []
    if wanted in LOSSES:
        missing = LOSSES[wanted].missing(hidden, vocab, device_type)
    elif wanted == "chunked" and device_type not in _DEVICES:
        missing = [f"it is written for {' and '.join(_DEVICES)}, and the device is {device_type}"]
    if missing:
        raise MachineError(
            f"train.loss_kernel={wanted} does not run here.",
            got="; ".join(missing),
            fix="train.loss_kernel=auto",
        )


def loss_function(name: str) -> Loss:
    """`linear_cross_entropy`; if `name` is an experiment, with the parts that it replaces."""
    return functools.partial(linear_cross_entropy, experiment=LOSSES.get(name))
