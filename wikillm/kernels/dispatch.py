"""Which implementation of an operation runs for a shape and a device, and why: said once at the start of a run.

Candidates register under a name with the devices they run on; `auto` takes the first that fits, so what has been
measured stands first (docs/measurements): `triton` waits there for a GPU. `stock` means: leave the model's code alone.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from wikillm.core.errors import MachineError
from wikillm.kernels.chunks import chunk_rows, tile_rows
from wikillm.kernels.float8_products import MULTIPLE
from wikillm.kernels.linear_cross_entropy import linear_cross_entropy

LossKernel = Literal["auto", "chunked", "triton", "fp8", "stock"]

Loss = Callable[
    ..., torch.Tensor
]  # (hidden_NH, weight_VH, labels_N, *, chunk_rows, count, ...) -> scalar
LINEAR_CROSS_ENTROPY: dict[str, tuple[Loss, frozenset[str]]] = {
    "chunked": (linear_cross_entropy, frozenset({"cpu", "cuda"})),
    "triton": (functools.partial(linear_cross_entropy, in_triton=True), frozenset({"cuda"})),
    "fp8": (functools.partial(linear_cross_entropy, in_float8=True), frozenset({"cpu", "cuda"})),
}
_FLOAT8_SINCE = (8, 9)  # CUDA compute capability: Ada and Hopper


@dataclass(frozen=True, slots=True)
class Choice:
    """`name` is a key of LINEAR_CROSS_ENTROPY or "stock"; `chunk_rows` are the rows whose logits exist at a time."""

    name: str
    chunk_rows: int
    reason: str

    def __str__(self) -> str:
        rows = "all rows" if self.name == "stock" else f"{self.chunk_rows:,} rows"
        return f"{self.name}, {rows} ({self.reason})"


def choose_linear_cross_entropy(
    wanted: LossKernel, *, rows: int, vocab: int, device_type: str
) -> Choice:
    """The implementation for `rows` tokens per micro-step over `vocab` tokens. Pure: the same answer on every rank.

    Raises MachineError when the one asked for does not run here.
    """
    if wanted == "stock":
        return Choice("stock", rows, "as asked")
    fitting = [
        name for name, (_, devices) in LINEAR_CROSS_ENTROPY.items() if device_type in devices
    ]
    lacks_triton = wanted == "triton" and importlib.util.find_spec("triton") is None
    if wanted not in ("auto", *fitting) or lacks_triton:
        raise MachineError(
            f"train.loss_kernel={wanted} does not run here.",
            got=f"device {device_type}" + (", and Triton is not installed" if lacks_triton else ""),
            fix="train.loss_kernel=auto; Triton comes with torch's CUDA builds",
        )
    if wanted != "auto" or fitting:
        name = fitting[0] if wanted == "auto" else wanted
        chunk = chunk_rows(rows, vocab, device_type)
        return Choice(name, chunk, f"of {rows:,} over {vocab:,} tokens on {device_type}")
    return Choice("stock", rows, f"no fused implementation for {device_type}")


def check_float8(*, hidden: int, vocab: int, device_type: str) -> None:
    """Raises MachineError where train.loss_kernel=fp8 cannot multiply these shapes on this device."""
    lacks = [
        f"{name} {size} is not a multiple of {MULTIPLE}"
        for name, size in (("model.hidden_size", hidden), ("model.vocab_size", vocab))
        if size % MULTIPLE
    ]
    if device_type == "cuda" and (found := torch.cuda.get_device_capability()) < _FLOAT8_SINCE:
        lacks.append(
            f"{torch.cuda.get_device_name()} has compute capability {found[0]}.{found[1]}, 8-bit floats need 8.9"
        )
    if lacks:
        raise MachineError(
            "train.loss_kernel=fp8 does not run here.",
            got="; ".join(lacks),
            fix="train.loss_kernel=auto",
        )


def choose_tiled_mlp(*, rows: int, intermediate: int, device_type: str) -> Choice:
    """The chunks of the tiled SwiGLU for `rows` tokens per micro-step. Pure: the same answer on every rank."""
    tile = tile_rows(rows, intermediate, device_type)
    return Choice("tiled", tile, f"of {rows:,} by {intermediate:,} on {device_type}")
