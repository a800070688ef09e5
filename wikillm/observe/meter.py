"""Speed and memory of the training loop between two logging steps: tokens/s, MFU, data wait, peak memory.

The meter reads a clock and counts; it never touches the device, so it costs no synchronisation. On a GPU the clock is
right where the caller has just read a loss from the device, which is what a logging step does. Evaluation, checkpoints
and samples run inside `pause()` and count nowhere. FLOPs per token and the peak come in as plain numbers.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Reading:
    """What happened since the last reading; field names are those of `metrics.jsonl`. None where it is not known."""

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
    """Counts tokens, steps, time and waiting. Starts at the first `step`'s beginning: call `start` before the loop.

    Args:
        world_size: devices that share the work.
        flops_per_token: forward and backward, of the model (6 x matmul weights + attention); None: no TFLOP/s.
        peak_flops: dense bf16 peak of one device in FLOP/s; None (CPU): no MFU.
        tokens, train_seconds: where a resumed run left off.
        uses_gpu: read the GPU's peak of allocated memory instead of the process's resident peak.
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
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._tokens, self._train_seconds = tokens, train_seconds
        self._uses_gpu, self._clock = uses_gpu, clock
        self._window_tokens = self._window_steps = 0
        self._window_seconds = self._window_wait = 0.0
        self._since: float | None = (
            None  # the clock when counting began or went on; None while it stands still
        )

    @property
    def tokens(self) -> int:
        """Tokens trained on since step 0, over all ranks."""
        return self._tokens

    @property
    def train_seconds(self) -> float:
        """Time in training since step 0, pauses not counted."""
        self._settle()
        return self._train_seconds

    def start(self) -> None:
        """Begin to count time; does nothing when it already counts."""
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
        """One optimizer step is done; `tokens` over all ranks went into it."""
        self.start()
        self._tokens += tokens
        self._window_tokens += tokens
        self._window_steps += 1

    def batches(self, source: Iterable[Item]) -> Iterator[Item]:
        """Pass batches on, and count the time spent waiting for each. (this rank)"""
        iterator = iter(source)
        while True:
            before = self._clock()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited(self._clock() - before)
            yield item

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for data, where the caller measures it."""
        if self._since is not None:
            self._window_wait += seconds

    def read(self) -> Reading:
        """What happened since the last call, and begin anew. Reads no device but its memory counter."""
        self._settle()
        seconds, steps = self._window_seconds, self._window_steps
        rate = self._window_tokens / seconds if seconds > 0 and steps else None
        per_device = rate / self._world_size if rate is not None else None
        flops = None
        if per_device is not None and self._flops_per_token is not None:
            flops = per_device * self._flops_per_token
        reading = Reading(
            tokens=self._tokens,
            tokens_per_second=rate,
            tokens_per_second_per_device=per_device,
            tflops_per_device=flops / 1e12 if flops is not None else None,
            mfu=flops / self._peak_flops if flops is not None and self._peak_flops else None,
            data_wait_fraction=min(1.0, self._window_wait / seconds) if seconds > 0 else None,
            memory_bytes=peak_memory(self._uses_gpu),
            step_seconds=seconds / steps if steps else None,
            train_seconds=self._train_seconds,
        )
        self._window_tokens = self._window_steps = 0
        self._window_seconds = self._window_wait = 0.0
        return reading

    def _settle(self) -> None:
        """Add the time since the last settling to the window and to the total."""
        if self._since is None:
            return
        now = self._clock()
        self._window_seconds += now - self._since
        self._train_seconds += now - self._since
        self._since = now


def peak_memory(uses_gpu: bool) -> int:
    """Peak bytes of this process: allocated by torch on the current GPU, or resident on the host."""
    if uses_gpu:
        import torch

        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
