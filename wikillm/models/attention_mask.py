"""What attention may see, said once per micro-batch and without a look at the data: `prepare_masks`, `same_document`.

Hugging Face's decoder searches the positions of every batch for documents, and waits for the GPU to know whether there are any, also in runs
that have none. Here the batch says so: it comes with positions, or without.

For documents (`train.document_mask`) it then hands SDPA a boolean mask, of which each layer makes an additive one of its own, and keeps it for the
backward pass: T x T numbers per sequence and layer, 2 GiB per layer at T=32,768 in 16 bit. Given the additive mask, SDPA takes it
as it is, and all layers keep the same. Flash attention takes lengths, which the batch has.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from wikillm.core.errors import WikiLLMError

CAUSAL_KERNELS = ("sdpa", "flash_attention_2")
"""Those that need no mask to be causal."""


def prepare_masks(model: PreTrainedModel) -> None:
    """Let the decoder of `model` make its mask from what the batch has, reversibly.

    `position_ids`, or for a stretch `document_positions` of whole sequences: the mask of documents, with SDPA. Flash attention's lengths, a
    stretch without documents, or none of these: no mask, which is causal. A batch with a mask or a cache of its own, or with
    positions for flash attention alone, runs as before. Raises WikiLLMError for a decoder that is patched already, and for other
    attention than `CAUSAL_KERNELS`.
    """
    decoder, kernel = model.get_decoder(), str(model.config._attn_implementation)
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kernel not in CAUSAL_KERNELS or kinds != {"full_attention"} or "forward" in decoder.__dict__:
        patched = "patched" if "forward" in decoder.__dict__ else "unpatched"
        raise WikiLLMError(
            "The masks of these layers cannot be prepared.",
            got=f"{type(model).__name__} with {kernel}, {', '.join(sorted(kinds))}, {patched}",
            fix="prepare them once, with model.attn_implementation=sdpa",
        )
    decoder.forward = MethodType(_with_mask, decoder)


def own_masks(model: PreTrainedModel) -> None:
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
    positions_BT, is_stretch = kwargs.get("position_ids"), bool(kwargs.get("sequence_parallel"))
    if document_positions is not None or is_stretch:
        positions_BT = document_positions
    mask = None
    if positions_BT is not None and "cu_seq_lens_q" not in kwargs:
        if decoder.config._attn_implementation != "sdpa":
            return stock(decoder, *args, **kwargs)
        device_type, weight = positions_BT.device.type, next(decoder.parameters())
        is_cast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_cast else weight.dtype
        mask = additive(same_document(positions_BT), dtype)
    # By kind of layer, as generation hands it over: a mask that is ready, also where there is none.
    return stock(decoder, *args, **kwargs | {"attention_mask": {"full_attention": mask}})
