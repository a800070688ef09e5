"""Small collectives beside training: votes on stopping and on NaN, sums, a common exit.

They run on a separate gloo group on the CPU. They take well under a millisecond per optimizer step,
never wait for a GPU and do not interfere with NCCL. With one rank they do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from wikillm.core.log import warn

_TIMEOUT = timedelta(minutes=30)


class ControlGroup:
    """Small collectives among all ranks.

    Create it once, after the process group exists. (all ranks)

    Args:
        timeout: limit for each collective.
    """

    def __init__(self, timeout: timedelta = _TIMEOUT) -> None:
        self.active = dist.is_initialized() and dist.get_world_size() > 1
        self._group = None
        if self.active:
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank has set it. (all ranks, the same number of flags)"""
        if not self.active:
            return flags
        votes = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(vote) for vote in votes.tolist())

    def sum(self, *values: float) -> tuple[float, ...]:
        """Sums over all ranks, in float64. (all ranks)"""
        if not self.active:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return tuple(total.tolist())

    def sum_modulo(self, values: Sequence[int]) -> list[int]:
        """Sums over all ranks, modulo 2^64, of numbers in [0, 2^64). (all ranks, same length)"""
        if not self.active or not values:
            return list(values)
        # Signed and unsigned addition give the same 64 bits.
        total = torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64))
        dist.all_reduce(total, group=self._group)
        found: list[int] = total.numpy().view(np.uint64).tolist()
        return found

    def gather(self, value: object) -> list[object]:
        """Every rank's value, on every rank. (all ranks)"""
        if not self.active:
            return [value]
        values: list[object] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values

    def barrier(self) -> None:
        """Wait for all ranks. (all ranks)"""
        if self.active:
            dist.barrier(group=self._group)

    def leave_together(self, timeout_seconds: float) -> None:
        """Wait, for a limited time, until every rank is about to exit. Never raises. (all ranks)

        The `deepspeed` launcher kills a node's other ranks at the first non-zero exit: a faster
        rank could end rank 0 before it has finished.
        """
        if not self.active:
            return
        try:
            dist.monitored_barrier(group=self._group, timeout=timedelta(seconds=timeout_seconds))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            warn(f"not every rank reached the end within {timeout_seconds:.0f} s: {reason}")
