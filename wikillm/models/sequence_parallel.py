"""Sequences split among ranks, reversibly: `split_sequences`, `whole_sequences`.

Consecutive ranks form groups of `size`. The loader gives each rank of a group its stretch of the same sequences (see
data.loader); everything in a decoder but attention works on single positions and needs no change. Attention runs on all
positions of a part of the heads (`kernels.ulysses`), by the implementation that the model has: SDPA or flash attention.
For the engine the ranks are plain data parallel: the loss of a stretch is divided by the targets of the whole global batch,
so the sum of the ranks' gradients, which every ZeRO stage and DDP form, is the gradient.

A call says by `sequence_parallel=True` that its input is a stretch. Any other call, such as generation, runs as before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wikillm.core.errors import WikiLLMError
from wikillm.kernels.ulysses import gather_positions, key_repeats, scatter_positions

SUPPORTED = (Qwen2ForCausalLM, Qwen3ForCausalLM)
_GROUP, _LOCAL = "_wikillm_sequence_group", "_wikillm_local_view"
_WRAPPED = "_wikillm_wraps"  # on our attention function: the one it calls


def split_sequences(model: PreTrainedModel, size: int) -> str:
    """Let the attention of `model` span groups of `size` consecutive ranks. Returns what is said about it. (all ranks)

    The configuration must fit (config.checks): `size` divides the ranks, the query heads and the sequence length, and
    divides the key heads or is a multiple of them. Raises WikiLLMError for a model that is not known here.
    """
    _check(model)
    kernel = str(model.config._attn_implementation)
    core: Any = ALL_ATTENTION_FUNCTIONS[kernel]
    group = _make_group(size)
    repeats = key_repeats(int(model.config.num_key_value_heads), size)
    for attention in _attentions(model):
        setattr(attention, _GROUP, group)
        if (
            repeats > 1
        ):  # a key head has fewer query heads on a rank, and HF's functions read their number here
            # As an attribute of a plain object: a submodule would be one more name for the same weights.
            view = copy.copy(attention)
            view.num_key_value_groups = attention.num_key_value_groups // repeats
            attention.__dict__[_LOCAL] = view
    if not hasattr(core, _WRAPPED):
        ALL_ATTENTION_FUNCTIONS[kernel] = _spanning(core)
    return f"{kernel}, sequences over {size} ranks (Ulysses)"


def whole_sequences(model: PreTrainedModel) -> None:
    """The model's own code again."""
    kernel = str(model.config._attn_implementation)
    wrapped = getattr(ALL_ATTENTION_FUNCTIONS[kernel], _WRAPPED, None)
    if wrapped is not None:
        del ALL_ATTENTION_FUNCTIONS[kernel]
    for attention in _attentions(model):
        attention.__dict__.pop(_GROUP, None)
        attention.__dict__.pop(_LOCAL, None)


def _attentions(model: PreTrainedModel) -> list[Any]:
    layers: Any = model.get_decoder().layers
    return [layer.self_attn for layer in layers]


def _check(model: PreTrainedModel) -> None:
    if isinstance(model, SUPPORTED) and not any(
        _GROUP in attention.__dict__ for attention in _attentions(model)
    ):
        return
    raise WikiLLMError(
        f"Sequence parallelism does not know the attention of {type(model).__name__}.",
        got=f"known: {', '.join(known.__name__ for known in SUPPORTED)}, not split before",
        fix="train.sequence_parallel_size=1",
    )


def _make_group(size: int) -> dist.ProcessGroup:
    """The group of this rank. Every rank makes all groups, in the same order."""
    rank, own = dist.get_rank(), None
    for first in range(0, dist.get_world_size(), size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= rank < first + size:
            own = group
    assert own is not None, f"groups of {size} leave rank {rank} out"
    return own


def _spanning(core: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function of HF's that spans the group where a call is told so; `core` elsewhere."""

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
        kwargs.pop(
            "position_ids", None
        )  # of the stretch; flash attention would look for documents in them
        parts = (query_BHtd, key_BKtd, value_BKtd)
        device_type = query_BHtd.device.type
        if torch.is_autocast_enabled(
            device_type
        ):  # Qwen3's norms leave float32, which attention would cast after sending
            parts = tuple(part.to(torch.get_autocast_dtype(device_type)) for part in parts)  # type: ignore[assignment]
        whole = gather_positions(*parts, group)
        out_BThd, _ = core(local or module, *whole, attention_mask, **kwargs)
        return scatter_positions(out_BThd, group), None

    setattr(attention, _WRAPPED, core)
    return attention
