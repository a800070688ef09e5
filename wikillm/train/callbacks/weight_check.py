"""Compares the weights of the ranks, and names a rank whose weights differ: silent corruption.

Without DeepSpeed and at ZeRO 0 to 2 all ranks must hold bit-identical weights. ZeRO-3 partitions
the weights; only the small tensors that it keeps whole are compared. The comparison finds faults
that make ranks differ (memory, a device's arithmetic, a lost update). It cannot find an error that
all ranks share, such as one in an optimizer partition that all ranks gather, or in a summed
gradient.
"""

from __future__ import annotations

import hashlib
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from wikillm.core.errors import CorruptedWeightsError
from wikillm.core.log import say
from wikillm.train.collectives import ControlGroup

_CHUNK = 1 << 22
"""Elements that are copied at a time when a tensor does not consist of aligned 64-bit words."""


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's bits as 64-bit words, modulo 2^64; an int64 scalar on its device.

    One changed bit always changes the sum. It does not depend on the tensor's place in memory.
    """
    flat = tensor.detach().reshape(-1)
    start = flat.storage_offset() * flat.element_size()
    if start % 8 == 0 and flat.nbytes % 8 == 0:
        return flat.view(torch.int64).sum()
    sums = []
    for part in flat.split(_CHUNK):
        missing = -part.nbytes % 8 // part.element_size()
        aligned = torch.cat([part, part.new_zeros(missing)])
        sums.append(aligned.view(torch.int64).sum())
    return torch.stack(sums).sum()


def replicated(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers that every rank holds whole, by name."""
    tensors = {
        name: parameter
        for name, parameter in model.named_parameters()
        if getattr(parameter, "ds_persist", True)
    }
    return {**tensors, **dict(model.named_buffers())}


@dataclass(frozen=True, slots=True)
class RankSums:
    """The checksums of one rank, in the order of the tensors' names. `host` is its node."""

    host: str
    sums: tuple[int, ...]


def differing_ranks(ranks: Sequence[RankSums]) -> list[int]:
    """The ranks outside the majority; all ranks if no checksums have a majority."""
    [(sums, count)] = Counter(rank.sums for rank in ranks).most_common(1)
    if count * 2 <= len(ranks):
        return list(range(len(ranks)))
    return [number for number, rank in enumerate(ranks) if rank.sums != sums]


class WeightCheckCallback(TrainerCallback):
    """Compares every `every` optimizer steps, and before each checkpoint. (all ranks)"""

    def __init__(self, every: int, group: ControlGroup) -> None:
        self.every = every
        self.group = group
        self.equal_at: int | None = None  # the latest step at which all ranks agreed

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        held = sum(tensor.numel() for tensor in replicated(model).values())
        total = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
        if self.group.active and any(hasattr(p, "ds_id") for p in model.parameters()):
            say(
                f"note       weight check: ZeRO-3 keeps {min(1, held / total):.2%} of the weights "
                "whole on every rank; only these are compared"
            )

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step
        is_due = step % self.every == 0 or control.should_save or step >= state.max_steps
        if not is_due or not self.group.active:
            return
        tensors = replicated(kwargs["model"])
        if not tensors:
            return
        sums: list[int] = torch.stack([checksum(tensor) for tensor in tensors.values()]).tolist()
        digest = hashlib.sha256(str(sums).encode()).hexdigest()
        if len(set(self.group.gather(digest))) == 1:
            self.equal_at = step
            return
        rank_sums: list[Any] = self.group.gather(RankSums(socket.gethostname(), tuple(sums)))
        raise self._corrupted(step, dict(enumerate(rank_sums)), list(tensors))

    def _corrupted(
        self, step: int, ranks: Mapping[int, RankSums], names: Sequence[str]
    ) -> CorruptedWeightsError:
        bad = differing_ranks(list(ranks.values()))
        who = " or ".join(f"rank {rank} ({ranks[rank].host})" for rank in bad)
        columns = zip(*(rank.sums for rank in ranks.values()), strict=True)
        tensors = [name for name, sums in zip(names, columns, strict=True) if len(set(sums)) > 1]
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        before = "at no earlier step" if self.equal_at is None else f"last at step {self.equal_at}"
        hosts = ", ".join(dict.fromkeys(ranks[rank].host for rank in bad))
        return CorruptedWeightsError(
            f"Silent corruption on {who}: the ranks' weights differ at step {step}.",
            got=f"{', '.join(tensors[:3])}{more}\ncompared equal {before}; nothing was saved since",
            fix=f"test memory and accelerators of {hosts}, or exclude the node; "
            "then resume with --resume auto",
        )
