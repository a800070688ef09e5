"""Energy that the GPU of this process has used, from NVML's counter (Volta and later)."""

from __future__ import annotations

from typing import Any


class GpuEnergy:
    """The energy since this object was created; None without a GPU, NVML or a counter."""

    def __init__(self, *, uses_gpu: bool) -> None:
        self._handle: Any = None
        self._first = 0.0
        if not uses_gpu:
            return
        try:
            import pynvml
            import torch

            pynvml.nvmlInit()
            # NVML ignores CUDA_VISIBLE_DEVICES, so the device is found by its UUID.
            uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self._first = self._read()
        except Exception:  # NVML's own errors, a missing library, a part of a GPU (MIG)
            self._handle = None

    def joules(self) -> float | None:
        """Energy in joules since this object was created, or None."""
        if self._handle is None:
            return None
        try:
            return self._read() - self._first
        except Exception:  # the driver may have been reset
            return None

    def _read(self) -> float:
        import pynvml

        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
