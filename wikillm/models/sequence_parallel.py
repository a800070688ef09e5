"""Splits sequences among ranks: `split_sequences`.

Consecutive ranks form groups of `size`. The loader gives each rank of a group its shard of the same
sequences. Outside of attention a decoder works on single positions and needs no change. Attention
runs on all positions for a part of the heads (`kernels.ulysses`), by the model's own kernel (SDPA
or flash attention). To the engine the ranks are plain data parallel: a shard's loss is divided by
the targets of the whole global batch, so the sum of the ranks' gradients, which every ZeRO stage
and DDP compute, is the gradient.

A call with `sequence_parallel=True` takes a sequence shard as input. Any other call, such as
generation, runs the model's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wikillm.core.errors import WikiLLMError
from wikillm.kernels.ulysses import gather_positions, key_repeats, scatter_positions
from wikillm.models.patching import check_supported, layers_of

_GROUP = "_wikillm_sequence_group"
_LOCAL = "_wikillm_local_view"
_SPANS = "_wikillm_spans"  # attribute that marks our attention function


def split_sequences(model: PreTrainedModel, size: int) -> str:
    """Let attention span groups of `size` consecutive ranks. Returns a phrase for the log.

    `size` must divide the ranks, the query heads and the sequence length, and must divide the key
    heads or be a multiple of them. Raises WikiLLMError for an unsupported model, or one that is
    already split. (all ranks)
    """
    fix = "train.sequence_parallel_size=1"
    check_supported(model, "Sequence parallelism", (), fix=fix)
    if any(_GROUP in attention.__dict__ for attention in _attentions(model)):
        raise WikiLLMError("The sequences of this model are split among ranks already.", fix=fix)
    kernel = str(model.config._attn_implementation)
    core: Any = ALL_ATTENTION_FUNCTIONS[kernel]
    group = _make_group(size)
    repeats = key_repeats(int(model.config.num_key_value_heads), size)
    for attention in _attentions(model):
        setattr(attention, _GROUP, group)
        if repeats > 1:
            # On a rank a key head has fewer query heads; HF's functions read their number here.
            # The view is no submodule, which would give the same weights a second name.
            view = copy.copy(attention)
            view.num_key_value_groups = attention.num_key_value_groups // repeats
            attention.__dict__[_LOCAL] = view
    if not hasattr(core, _SPANS):
        ALL_ATTENTION_FUNCTIONS[kernel] = _spanning(core)
    return f"{kernel}, sequences over {size} ranks (Ulysses)"


def _attentions(model: PreTrainedModel) -> list[Any]:
    return [layer.self_attn for layer in layers_of(model)]


def _make_group(size: int) -> dist.ProcessGroup:
    """This rank's group. Every rank must create all groups, in the same order."""
    rank = dist.get_rank()
    own_group = None
    for first in range(0, dist.get_world_size(), size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= rank < first + size:
            own_group = group
    assert own_group is not None, f"groups of {size} leave rank {rank} out"
    return own_group


def _spanning(core: Callable[..., Any]) -> Callable[..., Any]:
    """HF's attention function `core`, which for a sequence shard spans the rank's group."""

    def attention(
        module: nn.Module,
        query_BHtd: torch.Tensor,
        key_BKtd: torch.Tensor,
        value_BKtd: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sequence_parallel: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not sequence_parallel:
            return core(module, query_BHtd, key_BKtd, value_BKtd, attention_mask, **kwargs)  # type: ignore[no-any-return]
        group: dist.ProcessGroup = getattr(module, _GROUP)
        if (local := getattr(module, _LOCAL, None)) is not None:
            local.training = module.training
        # The shard's positions: flash attention would search them for documents.
        kwargs.pop("position_ids", None)
        parts = (query_BHtd, key_BKtd, value_BKtd)
        device_type = query_BHtd.device.type
        # Qwen3's norms return float32, which attention would cast only after the exchange.
        if torch.is_autocast_enabled(device_type):
            parts = tuple(part.to(torch.get_autocast_dtype(device_type)) for part in parts)  # type: ignore[assignment]
        whole = gather_positions(*parts, group)
        out_BThd, _ = core(local or module, *whole, attention_mask, **kwargs)
        return scatter_positions(out_BThd, group), None

    setattr(attention, _SPANS, True)
    return attention
