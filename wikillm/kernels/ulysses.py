"""Attention over sequences that are split among ranks, by exchanging heads for positions (Ulysses).

Each rank of a group of S holds t = T / S positions of a sequence, with all heads. One all-to-all
gives each rank all T positions of 1 / S of the heads; a second all-to-all returns the result
(DeepSpeed Ulysses, arXiv:2309.14509). Both are linear and their own transpose, so the backward pass
is the same exchange. A rank sends B t d (2 H + 2 R K) (S - 1) / S elements per layer and forward
pass.

If there are fewer key heads than ranks, each is repeated R = S / K times; autograd sums over the
copies.
Shapes: B sequences, H query and K key heads, T positions, t of them on a rank, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def key_repeats(kv_heads: int, ranks: int) -> int:
    """Number of copies of each key head, on different ranks; 1 if there are enough heads."""
    return max(1, ranks // kv_heads)


def gather_positions(
    query_BHtd: torch.Tensor,
    key_BKtd: torch.Tensor,
    value_BKtd: torch.Tensor,
    group: dist.ProcessGroup,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This rank's heads at all positions: B x H/S x T x d, and twice B x RK/S x T x d.

    Rank s gets the query heads [s H/S, (s + 1) H/S) and the key heads that belong to them, in one
    message per pair of ranks. (all ranks of the group)
    """
    ranks = group.size()
    batch, _, length, width = query_BHtd.shape
    repeats = key_repeats(key_BKtd.shape[1], ranks)
    if repeats > 1:
        key_BKtd, value_BKtd = (x.repeat_interleave(repeats, dim=1) for x in (key_BKtd, value_BKtd))
    heads = [x.shape[1] // ranks for x in (query_BHtd, key_BKtd, value_BKtd)]
    parts = [
        x.reshape(batch, ranks, n, length, width)
        for x, n in zip((query_BHtd, key_BKtd, value_BKtd), heads, strict=True)
    ]
    sent = torch.cat(parts, dim=2).movedim(1, 0)  # S receivers x B x heads x t x d
    got = _exchange(sent, group).permute(1, 2, 0, 3, 4)  # B x heads x S senders x t x d
    return tuple(got.reshape(batch, sum(heads), ranks * length, width).split(heads, dim=1))  # type: ignore[return-value]


def scatter_positions(out_BThd: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Attention's result, B x T x H/S x d per rank, as B x t x H x d. (all ranks of the group)"""
    ranks = group.size()
    batch, length, heads, width = out_BThd.shape
    sent = out_BThd.reshape(batch, ranks, length // ranks, heads, width).movedim(1, 0)
    got = _exchange(sent, group).permute(1, 2, 0, 3, 4)  # B x t x S senders x H/S x d
    return got.reshape(batch, length // ranks, ranks * heads, width)


def _exchange(parts_SF: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Send slice s to rank s of the group; slice s of the result comes from rank s."""
    exchanged: torch.Tensor = _AllToAll.apply(parts_SF, group)  # type: ignore[no-untyped-call]
    return exchanged


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts_SF: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        parts_SF = parts_SF.contiguous()
        got = torch.empty_like(parts_SF)
        dist.all_to_all_single(got, parts_SF, group=group)
        return got

    @staticmethod
    def backward(ctx: Any, grad_SF: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _AllToAll.forward(ctx, grad_SF, ctx.group), None
