"""Peak memory of this process's training alone, to compare with the plan's estimate.

On a CPU it is VmHWM (the kernel's high-water mark of resident memory) minus the memory that was
resident after all imports. The mark is reset after the imports (`5` to /proc/self/clear_refs), so
that earlier work such as tokenizing does not count. On a GPU it is torch's peak of allocated
memory, without the CUDA context and the allocator's gaps.
"""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """The peak memory in bytes. Create the object after all imports and before the model.

    `training` is the peak up to the first checkpoint or evaluation, because the plan's estimate
    covers neither. `whole` is the peak so far.
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
        """Call after each optimizer step; `pauses`: a checkpoint or an evaluation follows."""
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
    """Reset VmHWM to the resident memory (proc(5)). Returns False if a sandbox forbids it."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int:
    """Bytes in a line such as "VmHWM:  1234 kB" of /proc/self/status; 0 without such a line."""
    try:
        lines = _STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
