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

from wikillm.observe import names


class Meter:
    """Counts tokens, steps, time and waiting. Call `start` before the first step.

    Args:
        world_size: devices that share the work.
        flops_per_token: FLOPs of forward and backward (6 x matmul weights + attention).
        peak_flops: dense bf16 peak of one device in FLOP/s; None on a CPU, which has no MFU.
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
        """Seconds in training since step 0, pauses not counted."""
        self._settle()
        return self._train_seconds

    def start(self) -> None:
        """Start counting time, if it is not being counted."""
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

    def add_wait(self, seconds: float) -> None:
        """Count seconds of waiting for data, measured by the caller."""
        if self._since is not None:
            self._window_wait += seconds

    def read(self) -> dict[str, float]:
        """Measurements since the last call, by their `names`; a value that is unknown is absent.

        Of the device only the memory counter is read. `tokens` and `train_seconds` count since
        step 0; the memory and the data wait are those of this rank.
        """
        self._settle()
        seconds = self._window_seconds
        steps = self._window_steps
        values: dict[str, float] = {names.TOKENS: self.tokens}
        if seconds > 0 and steps:
            rate = self._window_tokens / seconds
            per_device = rate / self._world_size
            values[names.TOKENS_PER_SECOND] = rate
            values[names.TOKENS_PER_SECOND_PER_DEVICE] = per_device
            if self._flops_per_token is not None:
                flops = per_device * self._flops_per_token
                values[names.TFLOPS_PER_DEVICE] = flops / 1e12
                if self._peak_flops:
                    values[names.MFU] = flops / self._peak_flops
        if seconds > 0:
            values[names.DATA_WAIT_FRACTION] = min(1.0, self._window_wait / seconds)
        values[names.MEMORY_BYTES] = peak_memory(self._uses_gpu)
        if steps:
            values[names.STEP_SECONDS] = seconds / steps
        values[names.TRAIN_SECONDS] = self._train_seconds
        self._begin_window()
        return values

    def _settle(self) -> None:
        """Add the time since the last call to the window and to the total."""
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
