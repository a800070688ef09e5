"""One attention mask per micro-batch, made without a synchronisation: `prepare_masks`.

Hugging Face's decoder searches the positions of every batch for documents and waits for the GPU to
know whether there are any. Here the batch decides it: it comes with positions, or without.

For documents (`train.document_mask`) Hugging Face gives SDPA a boolean mask, from which each layer
makes an additive one and keeps it for the backward pass: T x T numbers per sequence and layer,
2 GiB per layer at T=32,768 in 16 bit. Given an additive mask, SDPA uses it as it is, and all layers
share it. Flash attention takes lengths, which the batch has.
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
"""They need no mask to be causal."""


def prepare_masks(model: PreTrainedModel) -> None:
    """Let the decoder of `model` make its mask from what the batch has, reversibly.

    With SDPA, `position_ids` become a mask of documents; so do the `document_positions` of whole
    sequences, where a batch is a sequence shard. Flash attention's lengths, a shard without
    documents, or none of these mean no mask, which is causal. A batch with a mask or a cache of its
    own, or with positions for flash attention alone, runs the decoder's own code.

    Raises WikiLLMError for a patched decoder, and for other attention than `CAUSAL_KERNELS`.
    """
    decoder = model.get_decoder()
    kernel = str(model.config._attn_implementation)
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kernel not in CAUSAL_KERNELS or kinds != {"full_attention"} or is_patched(decoder):
        patched = "patched" if is_patched(decoder) else "unpatched"
        raise WikiLLMError(
            "The masks of these layers cannot be prepared.",
            got=f"{type(model).__name__} with {kernel}, {', '.join(sorted(kinds))}, {patched}",
            fix="prepare them once, with model.attn_implementation=sdpa",
        )
    _accept_ready_masks(sys.modules[type(model).__module__])
    patch_forward(decoder, _with_mask)


def _accept_ready_masks(modeling: Any) -> None:
    """Let a decoder of this Hugging Face module take masks by kind of layer; Qwen's do already."""
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

    `positions_BT` begin at 0 with each document (see data.read.rows).
    """
    documents_BT = (positions_BT == 0).cumsum(dim=1)
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril_()[:, None]


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `allowed`, minus infinity elsewhere: what SDPA makes of a boolean mask."""
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
    # By kind of layer, as generation passes it: a mask that is ready, also where it is None.
    return stock(decoder, *args, **kwargs | {"attention_mask": {"full_attention": mask}})
