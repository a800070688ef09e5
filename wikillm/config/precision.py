"""Resolve `train.precision=auto`, for the machine of a run or for the machines of a plan."""

from __future__ import annotations

from typing import Literal

Precision = Literal["bf16", "fp16", "fp32"]


def resolve_precision(
    wanted: Literal["auto", "bf16", "fp16", "fp32"], *, has_gpu: bool, has_bf16: bool
) -> Precision:
    """auto -> bf16 if the hardware supports it, else fp16 on a GPU and fp32 on a CPU."""
    if wanted != "auto":
        return wanted
    if has_bf16:
        return "bf16"
    return "fp16" if has_gpu else "fp32"
