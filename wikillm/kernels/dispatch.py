"""Which implementation of the loss runs on a device, and in chunks of how many rows.

`auto` takes the chunked operation, `stock` leaves the model's code alone, and the other names are
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
    """Which implementation, and why.

    `name` is a value of train.loss_kernel, or "tiled" for MLPs. At most `chunk_rows` rows exist at
    a time: half of them for the loss on a CPU in 16 bit.
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
    """The implementation for `rows` tokens per micro-step. Pure: the same answer on every rank."""
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
    """Raises MachineError where train.loss_kernel=`wanted` does not run for these sizes."""
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
    """`linear_cross_entropy` with what the experiment `name` replaces in it."""
    return functools.partial(linear_cross_entropy, experiment=LOSSES.get(name))
