"""The list of experiments, each with its switch and the measurement that promotes or deletes it.

An experiment replaces a part of a stable operation, which takes that part as an argument. No
default turns an experiment on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from wikillm.experimental.float8_products import MULTIPLE, Float8Products, pad_rows

_FLOAT8_SINCE = (8, 9)  # CUDA compute capability: Ada and Hopper


@dataclass(frozen=True, slots=True)
class LossExperiment:
    """Replaces parts of `kernels.linear_cross_entropy`; a part that is None stays as it is.

    Attributes:
        switch: the setting that turns the experiment on.
        measurement: command whose result promotes it to `kernels` or deletes it, and the criterion.
        missing: (hidden size, vocabulary, device type) -> reasons why it does not run there.
        prepare: (hidden_NH, labels_N, ignore_index, chunk_rows) -> hidden states, labels and chunk
            rows, padded or cast.
        products: (hidden_NH, weight_VH) -> the three matrix products.
        chunk_loss: softmax, loss and the logits' gradient of one chunk.
    """

    switch: str
    measurement: str
    missing: Callable[[int, int, str], list[str]]
    prepare: Callable[..., tuple[torch.Tensor, torch.Tensor, int]] | None = None
    products: Callable[[torch.Tensor, torch.Tensor], Float8Products] | None = None
    chunk_loss: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] | None = None


def _missing_for_triton(hidden: int, vocab: int, device_type: str) -> list[str]:
    reasons = [] if device_type == "cuda" else [f"it needs a GPU, and the device is {device_type}"]
    if importlib.util.find_spec("triton") is None:
        reasons.append("Triton is not installed; it comes with torch's CUDA builds")
    return reasons


def _missing_for_float8(hidden: int, vocab: int, device_type: str) -> list[str]:
    sizes = {"model.hidden_size": hidden, "model.vocab_size": vocab}
    reasons = [
        f"{name} {size} is not a multiple of {MULTIPLE}"
        for name, size in sizes.items()
        if size % MULTIPLE
    ]
    if device_type not in ("cpu", "cuda"):
        reasons.append(f"torch has no 8-bit products for device {device_type}")
    elif device_type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if (major, minor) < _FLOAT8_SINCE:
            name = torch.cuda.get_device_name()
            reasons.append(f"{name} has compute capability {major}.{minor}, 8-bit floats need 8.9")
    return reasons


def _triton_chunk_loss(*args: Any, **kwargs: Any) -> Any:
    from wikillm.experimental.triton_cross_entropy import cross_entropy_in_place  # needs Triton

    return cross_entropy_in_place(*args, **kwargs)


LOSSES = {
    "triton": LossExperiment(
        switch="train.loss_kernel=triton",
        measurement="python benchmarks/losses.py --gpu: faster than `chunked` at the shapes of the "
        "presets, in no more memory",
        missing=_missing_for_triton,
        chunk_loss=_triton_chunk_loss,
    ),
    "fp8": LossExperiment(
        switch="train.loss_kernel=fp8",
        measurement="python benchmarks/train.py --gpu --contenders wikillm wikillm-fp8: a faster "
        "step; and a run of the 120M preset with each, held-out losses within 0.5 %",
        missing=_missing_for_float8,
        prepare=pad_rows,
        products=Float8Products,
    ),
}
"""Experiments by the value of train.loss_kernel."""
