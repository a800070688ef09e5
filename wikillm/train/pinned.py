"""Copies values to the host through pinned memory, without waiting for the GPU."""

from __future__ import annotations

from typing import Any

import torch


class DeferredFlag:
    """A boolean computed on the device and read without waiting: on a GPU, one step late."""

    def __init__(self) -> None:
        self._pending: tuple[torch.Tensor, Any] | None = None

    def push(self, flag: torch.Tensor) -> bool:
        """Start copying this step's flag; returns the last step's (on a CPU, this step's)."""
        if not flag.is_cuda:
            return bool(flag)
        arrived = self.flush()
        host = torch.empty_like(flag, device="cpu", pin_memory=True)
        host.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = (host, event)
        return arrived

    def flush(self) -> bool:
        """Wait for the pending flag and return it; False if there is none."""
        if self._pending is None:
            return False
        host, event = self._pending
        self._pending = None
        event.synchronize()
        return bool(host)


class PinnedCopy:
    """Copies a small tensor from the device to pinned memory, asynchronously."""

    def __init__(self) -> None:
        self._host: torch.Tensor | None = None

    def start(self, value: torch.Tensor) -> torch.Tensor:
        """Start copying; on a CPU returns `value` itself.

        Read the result after a call that waits for the device, and before the next `start`.
        """
        if not value.is_cuda:
            return value
        if self._host is None or self._host.shape != value.shape:
            self._host = torch.empty_like(value, device="cpu", pin_memory=True)
        self._host.copy_(value.detach(), non_blocking=True)
        return self._host
