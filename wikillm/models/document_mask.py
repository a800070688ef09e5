"""The mask of `train.document_mask` for SDPA, made once for all layers: `share_document_mask`, `same_document`.

Hugging Face hands SDPA a boolean mask, of which each layer makes an additive one of its own, and keeps it for the backward
pass: T x T numbers per sequence and layer, 2 GiB per layer at T=32,768 in 16 bit. Given the additive mask, SDPA takes it as it is, and all layers
keep the same. It is also made without a look at the values of the positions, on which a GPU would have to be waited for.

Flash and flex attention take lengths and block masks instead, and are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from wikillm.core.errors import WikiLLMError


def share_document_mask(model: PreTrainedModel) -> str:
    """Let the decoder of `model` make the mask from `position_ids`, or of whole sequences from `document_positions`.

    Where the batch has neither, or a mask or cache of its own, it runs as before. Returns what is said about it. Raises
    WikiLLMError for a decoder that is patched already, and for another attention than SDPA.
    """
    decoder, kernel = model.get_decoder(), str(model.config._attn_implementation)
    if kernel != "sdpa" or "forward" in decoder.__dict__:
        raise WikiLLMError(
            "The mask of documents cannot be shared by these layers.",
            got=f"{type(model).__name__} with {kernel}, {'patched' if 'forward' in decoder.__dict__ else 'unpatched'}",
            fix="share it once, with model.attn_implementation=sdpa",
        )
    decoder.forward = MethodType(_with_mask, decoder)
    return "within documents, one mask for all layers"


def own_document_masks(model: PreTrainedModel) -> None:
    """The decoder's own code again."""
    model.get_decoder().__dict__.pop("forward", None)


def same_document(positions_BT: torch.Tensor) -> torch.Tensor:
    """B x 1 x T x T, true where a query (row) may see a key: not later, and in the same document.

    `positions_BT` begin at 0 with each document (see data.boundaries).
    """
    documents_BT = (positions_BT == 0).cumsum(dim=1)
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril_()[:, None]


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `allowed`, minus infinity elsewhere: what SDPA makes of a boolean mask."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def _with_mask(decoder: nn.Module, *args: Any, document_positions: torch.Tensor | None = None, **kwargs: Any) -> Any:
    stock: Callable[..., Any] = type(decoder).forward
    is_whole = not kwargs.get("sequence_parallel", False)
    positions_BT = kwargs.get("position_ids") if document_positions is None and is_whole else document_positions
    has_own = kwargs.get("attention_mask") is not None or kwargs.get("past_key_values") is not None
    if positions_BT is None or has_own:
        return stock(decoder, *args, **kwargs)
    device_type, weight = positions_BT.device.type, next(decoder.parameters())
    is_cast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if is_cast else weight.dtype
    return stock(decoder, *args, **kwargs | {"attention_mask": additive(same_document(positions_BT), dtype)})
