"""Makes one attention mask per micro-batch, without a synchronisation: `prepare_masks`.

Hugging Face's decoder searches the positions of every batch for documents, and waits for the GPU to
know whether there are any. Here the batch tells it: a batch has positions only with documents.

For documents (`train.document_mask`) Hugging Face gives SDPA a boolean mask. Each layer converts it
to an additive mask, and keeps that for the backward pass: T x T numbers per sequence and layer,
2 GiB per layer at T=32,768 in 16 bit. SDPA uses an additive mask as it is, so all layers share one.
Flash attention takes the documents' lengths, which the batch has.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from wikillm.core.errors import WikiLLMError
from wikillm.models.patching import is_patched, patch_forward

_READY = "_wikillm_takes_ready_masks"  # on our function in Hugging Face's module
CAUSAL_KERNELS = ("sdpa", "flash_attention_2")
"""Kernels that are causal without a mask."""


def prepare_masks(model: PreTrainedModel) -> None:
    """Let the decoder of `model` make its mask from the batch's inputs, reversibly.

    With SDPA the mask is made from `position_ids`, or, if the batch is a sequence shard, from the
    whole sequences' `document_positions`. There is no mask (plain causal attention) for flash
    attention's lengths, for a shard without documents, and for a batch without positions. The
    decoder's own code runs for a batch with a mask or a cache, and for one with positions but no
    lengths under flash attention.

    Raises WikiLLMError for a patched decoder, and for attention outside `CAUSAL_KERNELS`.
    """
    decoder = model.get_decoder()
    kernel = str(model.config._attn_implementation)
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kernel not in CAUSAL_KERNELS or kinds != {"full_attention"} or is_patched(decoder):
        patched = "patched" if is_patched(decoder) else "unpatched"
        raise WikiLLMError(
            "The masks of these layers cannot be prepared.",
            got=f"{type(model).__name__} with {kernel}, {', '.join(sorted(kinds))}, {patched}",
            fix="use model.attn_implementation=sdpa, and call `prepare_masks` only once",
        )
    _accept_ready_masks(sys.modules[type(model).__module__])
    patch_forward(decoder, _with_mask)


def _accept_ready_masks(modeling: Any) -> None:
    """Let this Hugging Face module's decoders take masks by kind of layer, as Qwen's already do."""
    stock = modeling.create_causal_mask
    if hasattr(stock, _READY):
        return

    @functools.wraps(stock)
    def create_causal_mask(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if isinstance(attention_mask, dict):
            return attention_mask["full_attention"]
        return stock(*args, attention_mask=attention_mask, **kwargs)

    setattr(create_causal_mask, _READY, True)
    modeling.create_causal_mask = create_causal_mask


def same_document(positions_BT: torch.Tensor) -> torch.Tensor:
    """B x 1 x T x T, true where a query (row) may see a key: not later, and in the same document.

    `positions_BT` restarts at 0 with each document (see data.read.rows).
    """
    documents_BT = (positions_BT == 0).cumsum(dim=1)
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril_()[:, None]


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `allowed`, minus infinity elsewhere, as SDPA converts a boolean mask."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, float("-inf")
    )


def _with_mask(
    decoder: Any, *args: Any, document_positions: torch.Tensor | None = None, **kwargs: Any
) -> Any:
    stock: Callable[..., Any] = type(decoder).forward
    if (
        kwargs.get("attention_mask") is not None
        or kwargs.get("past_key_values") is not None
        or kwargs.get("use_cache")
    ):
        return stock(decoder, *args, **kwargs)
    positions_BT = kwargs.get("position_ids")
    if document_positions is not None or kwargs.get("sequence_parallel"):
        positions_BT = document_positions  # a shard's own positions do not show documents
    mask = None
    if positions_BT is not None and "cu_seq_lens_q" not in kwargs:
        if decoder.config._attn_implementation != "sdpa":
            return stock(decoder, *args, **kwargs)
        device_type = positions_BT.device.type
        dtype = next(decoder.parameters()).dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        mask = additive(same_document(positions_BT), dtype)
    # A dict by kind of layer, as in generation: HF takes its value as a finished mask, even None.
    return stock(decoder, *args, **kwargs | {"attention_mask": {"full_attention": mask}})
