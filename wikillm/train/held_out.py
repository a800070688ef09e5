"""The loss on every held-out stream of a run, computed by all ranks together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from wikillm.data.read.loader import eval_loader
from wikillm.evals.loss import HeldOutLoss, held_out_loss
from wikillm.train.collectives import ControlGroup
from wikillm.train.run_data import RunData


def held_out_losses(
    model: nn.Module,
    data: RunData,
    *,
    device: torch.device,
    group: ControlGroup,
    should_stop: Callable[[], bool],
) -> dict[str, HeldOutLoss] | None:
    """By the name of the stream; None when `should_stop` ended it early. (all ranks)"""
    found: dict[str, HeldOutLoss] = {}
    for stream in data.val:
        loader = eval_loader(
            stream.tokens,
            data.order.sequence_length,
            micro_batch=data.eval_micro_batch,
            world_size=data.shape.world_size,
            rank=data.shape.rank,
            max_tokens=data.max_eval_tokens,
            mask=data.mask,
            shard=data.shard,
        )
        result = held_out_loss(
            model,
            loader,
            bytes_per_token=stream.bytes_per_token,
            device=device,
            sum_over_ranks=group.sum,
            should_stop=should_stop,
        )
        if result is None:
            return None
        found[stream.name] = result
    return found
