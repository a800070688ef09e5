"""Speed and memory of training between two logging steps: tokens/s, MFU, data wait, peak memory.

The meter reads a clock and counts; it never touches the device, so it costs no synchronization. On
a GPU the time is exact if the caller has just read a loss from the device, as a logging step does.
Evaluation, checkpoints and samples run inside `pause()` and do not count.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """Measurements since the last reading, named as in `metrics.jsonl`; None if unknown."""

    tokens: int  # since step 0, over all ranks
    tokens_per_second: float | None  # over all ranks
    tokens_per_second_per_device: float | None
    tflops_per_device: float | None
    mfu: float | None  # 0..1
    data_wait_fraction: float | None  # 0..1, of this rank
    memory_bytes: int  # peak of this rank
    step_seconds: float | None
    train_seconds: float  # since step 0, pauses not counted

    def as_metrics(self) -> dict[str, float]:
        """The known values, ready for a sink."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Meter:
    """Counts tokens, steps, time and waiting. Call `start` before the first step.

    Args:
        world_size: devices that share the work.
        flops_per_token: FLOPs of forward and backward (6 x matmul weights + attention).
        peak_flops: dense bf16 peak of one device in FLOP/s; None (CPU): no MFU.
        tokens, train_seconds: totals from which a resumed run continues.
        uses_gpu: read the GPU's peak of allocated memory, not the process's resident peak.
    """

    def __init__(
        self,
        world_size: int,
        *,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        tokens: int = 0,
        train_seconds: float = 0.0,
        uses_gpu: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._world_size = world_size
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self.tokens = tokens
        self._train_seconds = train_seconds
        self._uses_gpu = uses_gpu
        self._clock = clock
        self._since: float | None = None  # when time was last counted; None while stopped
        self._begin_window()

    def _begin_window(self) -> None:
        self._window_tokens = 0
        self._window_steps = 0
        self._window_seconds = 0.0
        self._window_wait = 0.0

    @property
    def train_seconds(self) -> float:
        """Time in training since step 0, pauses not counted."""
        self._settle()
        return self._train_seconds

    def start(self) -> None:
        """Start counting time; does nothing while it is counted."""
        if self._since is None:
            self._since = self._clock()

    def stop(self) -> None:
        """Stop counting time until `start`."""
        self._settle()
        self._since = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside does not count. May be nested."""
        was_counting = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if was_counting:
                self.start()

    def step(self, tokens: int) -> None:
        """Count an optimizer step of `tokens` tokens over all ranks."""
        self.start()
        self.tokens += tokens
        self._window_tokens += tokens
        self._window_steps += 1

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for data, as the caller has measured it."""
        if self._since is not None:
            self._window_wait += seconds

    def read(self) -> Reading:
        """Measurements since the last call. Of the device it reads only the memory counter."""
        self._settle()
        seconds = self._window_seconds
        steps = self._window_steps
        rate = self._window_tokens / seconds if seconds > 0 and steps else None
        per_device = rate / self._world_size if rate is not None else None
        flops = None
        if per_device is not None and self._flops_per_token is not None:
            flops = per_device * self._flops_per_token
        reading = Reading(
            tokens=self.tokens,
            tokens_per_second=rate,
            tokens_per_second_per_device=per_device,
            tflops_per_device=flops / 1e12 if flops is not None else None,
            mfu=flops / self._peak_flops if flops is not None and self._peak_flops else None,
            data_wait_fraction=min(1.0, self._window_wait / seconds) if seconds > 0 else None,
            memory_bytes=peak_memory(self._uses_gpu),
            step_seconds=seconds / steps if steps else None,
            train_seconds=self._train_seconds,
        )
        self._begin_window()
        return reading

    def _settle(self) -> None:
        """Add the time since it was last counted to the window and to the total."""
        if self._since is None:
            return
        now = self._clock()
        self._window_seconds += now - self._since
        self._train_seconds += now - self._since
        self._since = now


def peak_memory(uses_gpu: bool) -> int:
    """Peak bytes of this process: allocated by torch on the GPU, or resident on the host."""
    if uses_gpu:
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
