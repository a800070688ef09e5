"""Measures matrix products, copies and attention on the first GPU, or on all CPU cores.

After a warm-up each operation runs for its share of the time, at least three times. The fastest
repetition counts, since other load only adds time. The types are those of training: 16 bit on a
GPU, 32 bit on a CPU.
"""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention


def device_name() -> str:
    """The driver's name of the GPU, or the name of the processor."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measure_device(seconds: float) -> dict[str, float]:
    """FLOP/s of matrix products and of causal attention (counted in full), bytes/s of copies (read
    plus written)."""
    # Operands that are large enough to keep the device busy.
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.float32
    n = 1024
    copied = 1 << 26
    heads = 8
    length = 512
    width = 64
    if on_gpu:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if has_bf16 else torch.float16
        n = 8192
        copied = 1 << 30
        heads = 32
        length = 4096
        width = 128
    with torch.no_grad(), torch.random.fork_rng(devices=[0] if on_gpu else []):
        torch.manual_seed(0)
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        source = torch.empty(copied, device=device, dtype=torch.uint8).fill_(1)
        target = torch.empty_like(source)
        shape = (1, heads, length, width)
        q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
        attend = functools.partial(scaled_dot_product_attention, q, k, v, is_causal=True)
        share = seconds / 3
        return {
            "gemm_flops": 2 * n**3 / _best(lambda: a @ b, share),
            "copy_bytes_per_second": 2 * copied / _best(lambda: target.copy_(source), share),
            "attention_flops": 4 * heads * length**2 * width / _best(attend, share),
        }


@functools.cache
def bf16_gain() -> float:
    """Speed of bf16 products on this CPU relative to float32, measured in CPU time.

    Processors without bf16 units have a value below 1. The measurement takes about 0.1 s, once per
    process. It uses one thread, since threads that wait for each other would add CPU time. Other
    load hardly changes CPU time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        a, b = (torch.randn(rows, 1024) for rows in (256, 1024))
        wide = functools.partial(torch.mm, a, b)
        narrow = functools.partial(torch.mm, a.bfloat16(), b.bfloat16())
        # Alternate, so that a change of the clock rate or a busy sibling core affects both.
        turns = [(_cpu_seconds(wide), _cpu_seconds(narrow)) for _ in range(12)]
    torch.set_num_threads(threads)
    return min(turn[0] for turn in turns) / max(min(turn[1] for turn in turns), 1e-9)


def _cpu_seconds(operation: Callable[[], object]) -> float:
    start = time.process_time()
    operation()
    return time.process_time() - start


def _best(operation: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest repetition of `operation` within `seconds`."""

    def once() -> float:
        start = time.perf_counter()
        operation()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    until = time.perf_counter() + seconds
    times = [once() for _ in range(3)]
    while time.perf_counter() < until:
        times.append(once())
    return min(times)
