"""Values that the host reads without waiting for the GPU: `DeferredFlag`, `PinnedCopy`."""

from __future__ import annotations

from typing import Any

import torch


class DeferredFlag:
    """A boolean computed on the device, read by the host without a blocking sync: on a GPU one step late."""

    def __init__(self) -> None:
        self._pending: tuple[torch.Tensor, Any] | None = None

    def push(self, flag: torch.Tensor) -> bool:
        """Hand in this step's flag; returns the one that has arrived (on CPU this step's, on a GPU the last one's)."""
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
        """Wait for the flag under way, if there is one, and return it."""
        if self._pending is None:
            return False
        host, event = self._pending
        self._pending = None
        event.synchronize()
        return bool(host)


class PinnedCopy:
    """The latest value of a scalar on the device, under way to pinned memory."""

    def __init__(self) -> None:
        self._host: torch.Tensor | None = None

    def bring(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor on the host, to be read after something that has waited for the device, and before the next call.

        On a CPU `value` itself.
        """
        if not value.is_cuda:
            return value
        if self._host is None:
            self._host = torch.empty_like(value, device="cpu", pin_memory=True)
        self._host.copy_(value.detach(), non_blocking=True)
        return self._host
