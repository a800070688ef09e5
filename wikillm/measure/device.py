"""Matrix products, copies and attention on the first GPU, or on all cores together where there is none.

Each operation runs until its share of the time is over, at least three times, after a warm-up; the best repetition counts, since
whatever else runs on the machine only adds time. On a GPU the matrices are 16-bit, on a CPU 32-bit, as training has them.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional


def device_name() -> str:
    """Of the GPU as its driver says, or of the processor."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measure_device(seconds: float) -> dict[str, float]:
    """FLOP/s of a product and of attention (causal, counted in full), bytes/s of a copy (read plus written)."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.float32
    if on_gpu:
        dtype = (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float16
        )
    n, copied, (heads, length, width) = (
        (8192, 1 << 30, (32, 4096, 128)) if on_gpu else (1024, 1 << 26, (8, 512, 64))
    )  # fmt: skip
    with torch.no_grad(), torch.random.fork_rng(devices=[0] if on_gpu else []):
        torch.manual_seed(0)
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        source = torch.empty(copied, device=device, dtype=torch.uint8).fill_(1)
        target = torch.empty_like(source)
        q, k, v = (
            torch.randn(1, heads, length, width, device=device, dtype=dtype) for _ in range(3)
        )
        share = seconds / 3
        return {
            "gemm_flops": 2 * n**3 / _best(lambda: a @ b, share),
            "copy_bytes_per_second": 2 * copied / _best(lambda: target.copy_(source), share),
            "attention_flops": 4 * heads * length**2 * width
            / _best(lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True), share),
        }  # fmt: skip


def _best(operation: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest repetition."""

    def once() -> float:
        start = time.perf_counter()
        operation()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    until, best, count = time.perf_counter() + seconds, float("inf"), 0
    while count < 3 or time.perf_counter() < until:
        best, count = min(best, once()), count + 1
    return best
