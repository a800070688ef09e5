"""The MLPs of the decoder layers over chunks of tokens, reversibly: `tile_mlp`, `untile_mlp`. For long sequences.

The operation is `kernels.tiled_swiglu`, in training, evaluation and generation. It wants the three weights at once, so it
runs inside the nested calls of gate_proj, up_proj and down_proj: under ZeRO-3 DeepSpeed's hooks on these modules gather
each weight once before all chunks, once more before their backward, and take one gradient, as they do for the plain
projections. Called with a tensor alone, as nothing but the MLP does, the three are the projections they were.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from wikillm.core.errors import WikiLLMError
from wikillm.kernels.chunks import tile_rows
from wikillm.kernels.dispatch import Choice, choose_tiled_mlp
from wikillm.kernels.tiled_swiglu import tiled_swiglu

MLP = "MLP"
SUPPORTED = (Qwen2ForCausalLM, Qwen3ForCausalLM)
_PARTS = ("gate_proj", "up_proj", "down_proj")
Then = Callable[[torch.Tensor], torch.Tensor]


def tile_mlp(model: PreTrainedModel, *, rows: int, device_type: str) -> Choice:
    """Let every decoder layer of `model` compute its MLP in chunks. Returns the choice for `rows` tokens per micro-step.

    Other batches are chunked by the same rule. Raises WikiLLMError for a model whose MLP is not known here, and for one
    that is tiled already.
    """
    _check(model)
    for mlp in _mlps(model):
        for name in _PARTS:
            part = getattr(mlp, name)
            part.forward = MethodType(_projection(part.forward), part)
        mlp.forward = MethodType(_forward, mlp)
    width = int(model.config.intermediate_size)
    return choose_tiled_mlp(rows=rows, intermediate=width, device_type=device_type)


def untile_mlp(model: PreTrainedModel) -> None:
    """The MLPs' own code again."""
    for mlp in _mlps(model):
        for module in (mlp, *(getattr(mlp, name) for name in _PARTS)):
            module.__dict__.pop("forward", None)


def _mlps(model: PreTrainedModel) -> list[Any]:
    layers: Any = model.get_decoder().layers
    return [layer.mlp for layer in layers]


def _check(model: PreTrainedModel) -> None:
    activation = getattr(model.config, "hidden_act", None)
    is_known = isinstance(model, SUPPORTED) and activation == "silu"
    if is_known and not any("forward" in mlp.__dict__ for mlp in _mlps(model)):
        return
    raise WikiLLMError(
        f"The tiled MLP does not know how {type(model).__name__} computes its own.",
        got=f"known: {', '.join(known.__name__ for known in SUPPORTED)} with silu, unpatched; activation here: {activation}",
        fix="train.mlp_kernel=stock",
    )


def _projection(stock: Then) -> Callable[..., torch.Tensor]:
    def forward(part: nn.Linear, x: torch.Tensor, then: Then | None = None) -> torch.Tensor:
        return stock(x) if then is None else then(x)

    return forward


def _forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    # `then` is a keyword: DeepSpeed's hooks look into positional arguments only.
    def products(x: torch.Tensor) -> torch.Tensor:
        weights = [getattr(mlp, name).weight for name in _PARTS]  # gathered now
        chunk = tile_rows(x.shape[:-1].numel(), weights[0].shape[0], x.device.type)
        return tiled_swiglu(x, *weights, chunk_rows=chunk)

    def inside_up(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = mlp.down_proj(x, then=products)
        return out

    def inside_gate(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = mlp.up_proj(x, then=inside_up)
        return out

    out: torch.Tensor = mlp.gate_proj(x, then=inside_gate)
    return out
