"""Peak memory of this process's training alone, to compare with the plan's estimate.

On a CPU: VmHWM (the kernel's high-water mark of resident memory) less what was resident after all
imports. The mark is reset at that moment (`5` to /proc/self/clear_refs), so that tokenizing before
does not count. On a GPU: torch's peak of allocated memory, without the CUDA context and the
allocator's gaps.
"""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Create it after all imports and before the model. `training` and `whole` are bytes.

    `training` is the peak up to the first step before a checkpoint or an evaluation, whose own
    peaks no estimate covers. `whole` is the peak so far.
    """

    def __init__(self, *, uses_gpu: bool) -> None:
        self._uses_gpu = uses_gpu
        self._base = 0
        self._training = 0
        self._settled = False
        if not uses_gpu:
            self.is_reset = _reset_mark()
            self._base = _resident("VmRSS")

    def step_done(self, *, pauses: bool) -> None:
        """Call it after an optimizer step; `pauses`: a checkpoint or an evaluation follows."""
        if not self._settled:
            self._training = self.whole
            self._settled = pauses

    @property
    def training(self) -> int:
        return self._training or self.whole

    @property
    def whole(self) -> int:
        if self._uses_gpu:
            import torch

            return int(torch.cuda.max_memory_allocated())
        return max(0, _resident("VmHWM") - self._base)


def _reset_mark() -> bool:
    """Reset VmHWM to the memory that is resident now (proc(5)). Some sandboxes forbid it."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int:
    """Bytes of a line like "VmHWM:  1234 kB" of /proc/self/status; 0 where there is none."""
    try:
        lines = _STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
