"""What all ranks agree on, outside the training collectives: stop now, stop because of NaN, leave together.

Agreement runs on a gloo group of its own, on CPU: it costs well under a millisecond per optimizer step, never
waits for a GPU, and does not get in the way of NCCL. With one rank it is a no-op.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from wikillm.core.log import warn


class ControlGroup:
    """Small collectives among all ranks. Make it once, after the process group exists. (all ranks)"""

    def __init__(self, timeout_seconds: float = 1800.0) -> None:
        self.active = dist.is_initialized() and dist.get_world_size() > 1
        self._group = None
        if self.active:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag: does any rank have it set? (all ranks, the same number of flags)"""
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
        """Wait, at most so long, until every rank is about to exit. (all ranks)

        The `deepspeed` launcher kills the other ranks of a node at the first non-zero exit; without this, rank 0
        could lose its closing work to a faster neighbour. Never raises.
        """
        if not self.active:
            return
        try:
            dist.monitored_barrier(group=self._group, timeout=timedelta(seconds=timeout_seconds))
        except RuntimeError as error:
            warn(
                f"not every rank reached the end within {timeout_seconds:.0f} s: {str(error).splitlines()[0]}"
            )
