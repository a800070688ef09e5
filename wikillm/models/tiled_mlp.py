"""Computes the decoder layers' MLPs in chunks of tokens, for long sequences.

Training, evaluation and generation use `kernels.tiled_swiglu`. It needs the three weights at once,
so it runs inside nested calls of gate_proj, up_proj and down_proj. So under ZeRO-3 DeepSpeed's
hooks on these modules gather each weight once before all chunks and once before their backward, and
take one gradient. Called with only a tensor, the three modules are plain projections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from wikillm.kernels.chunks import mlp_chunk_rows
from wikillm.kernels.dispatch import Implementation
from wikillm.kernels.tiled_swiglu import tiled_swiglu
from wikillm.models.patching import check_supported, mlps_of, patch_forward

_PARTS = ("gate_proj", "up_proj", "down_proj")
Then = Callable[[torch.Tensor], torch.Tensor]


def tile_mlp(model: PreTrainedModel, *, rows: int, device_type: str) -> Implementation:
    """Let every decoder layer compute its MLP in chunks; returns the chunking of `rows` tokens.

    Other batches are chunked by the same rule. Raises WikiLLMError for an unsupported model, or one
    that is already tiled.
    """
    mlps = mlps_of(model)
    check_supported(model, "The tiled MLP", mlps, fix="train.mlp_kernel=stock", mlp=True)
    for mlp in mlps:
        for name in _PARTS:
            part = getattr(mlp, name)
            patch_forward(part, _projection(part.forward))
        patch_forward(mlp, _forward)
    width = int(model.config.intermediate_size)
    chunk = mlp_chunk_rows(rows, width, device_type)
    return Implementation("tiled", chunk, f"of {rows:,} by {width:,} on {device_type}")


def _projection(stock: Then) -> Callable[..., torch.Tensor]:
    def forward(part: nn.Linear, x: torch.Tensor, then: Then | None = None) -> torch.Tensor:
        return stock(x) if then is None else then(x)

    return forward


def _forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    # `then` is a keyword: DeepSpeed's hooks look into positional arguments only.
    def products(x: torch.Tensor) -> torch.Tensor:
        weights = [getattr(mlp, name).weight for name in _PARTS]  # ZeRO-3 has gathered them here
        chunk = mlp_chunk_rows(x.shape[:-1].numel(), weights[0].shape[0], x.device.type)
        return tiled_swiglu(x, *weights, chunk_rows=chunk)

    def inside_up(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = mlp.down_proj(x, then=products)
        return out

    def inside_gate(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = mlp.up_proj(x, then=inside_up)
        return out

    out: torch.Tensor = mlp.gate_proj(x, then=inside_gate)
    return out
