"""Measure the memory that a forward pass keeps for its backward pass."""

from __future__ import annotations

import gc
from typing import Any

from torch.profiler import ProfilerActivity, profile


def held_bytes(model: Any, **inputs: Any) -> int:
    """Bytes that `model`'s decoder allocates and keeps on a CPU, measured on its second call."""
    decoder = model.get_decoder()
    decoder(**inputs)
    # What an earlier measurement kept must not be freed within this one, where it would count.
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            out = decoder(**inputs).last_hidden_state
    finally:
        gc.enable()
    assert out.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages())
