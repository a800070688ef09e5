"""Compiles the operations between a decoder layer's products: `compile_elementwise`.

There are three functions, each with one graph for all layers: RMSNorm, the rotation of queries and
keys, silu(gate) * up. Each reads and writes its tensors once, and keeps only what its backward
needs. Modules, weights and hooks stay outside of the graphs, so this works under ZeRO-3, unlike
compiled layers. Compiled layers fuse more: they also join norms and residuals.

The graphs run in training only: evaluation and generation, whose shapes differ, run the model's own
code. A graph break is an error (`fullgraph`). A tiled MLP keeps its own SwiGLU.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from wikillm.models.patching import (
    check_supported,
    is_patched,
    mlps_of,
    norms_of,
    own_forward,
    patch_forward,
)

_ROTATION = "apply_rotary_pos_emb"  # a function of HF's module, which its attention finds there
_STOCK = "_wikillm_stock"  # attribute of our rotation that holds HF's


def compile_elementwise(model: PreTrainedModel, *, backend: str = "inductor") -> str:
    """Compile the three functions, each at its first call. Returns a phrase for the log.

    The rotation is replaced for all models of this architecture in the process. Raises WikiLLMError
    for an unsupported model, or one that is already compiled in this way.
    """
    norms = norms_of(model)
    check_supported(model, "train.compile=elementwise", norms, fix="train.compile=off", mlp=True)
    compiled = ["norms", "rotation"]
    for norm in norms:
        patch_forward(norm, _norm_forward(backend))
    modeling: Any = sys.modules[type(model).__module__]
    if not hasattr(modeling.apply_rotary_pos_emb, _STOCK):
        setattr(modeling, _ROTATION, _rotation(modeling.apply_rotary_pos_emb, backend))
    for mlp in mlps_of(model):
        if not is_patched(mlp):
            patch_forward(mlp, _mlp_forward(backend))
            compiled = ["norms", "rotation", "SwiGLU"]
    return f"{', '.join(compiled)}, each a function of its own"


def restore_rotation(model: PreTrainedModel) -> None:
    """Restore Hugging Face's rotation for all models of this architecture in the process."""
    modeling: Any = sys.modules[type(model).__module__]
    ours = modeling.apply_rotary_pos_emb
    setattr(modeling, _ROTATION, getattr(ours, _STOCK, ours))


@functools.cache
def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * normalised.to(x.dtype)


def _rotate(
    q_BHTd: torch.Tensor, k_BKTd: torch.Tensor, cos_BTd: torch.Tensor, sin_BTd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    cos = cos_BTd[:, None]
    sin = sin_BTd[:, None]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    return rotated(q_BHTd), rotated(k_BKTd)


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def _norm_forward(backend: str) -> Callable[..., torch.Tensor]:
    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        if not (norm.training and torch.is_grad_enabled()):
            own: torch.Tensor = own_forward(norm)(x)
            return own
        rows = x.reshape(-1, x.shape[-1])  # the same shape for any leading dimensions
        out: torch.Tensor = _compiled(_norm, backend)(rows, norm.weight, norm.variance_epsilon)
        return out.view(x.shape)

    return forward


def _rotation(stock: Callable[..., Any], backend: str) -> Callable[..., Any]:
    @functools.wraps(stock)
    def apply_rotary_pos_emb(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        if unsqueeze_dim == 1 and torch.is_grad_enabled() and q.requires_grad:
            return _compiled(_rotate, backend)(q, k, cos, sin)
        return stock(q, k, cos, sin, unsqueeze_dim)

    setattr(apply_rotary_pos_emb, _STOCK, stock)
    return apply_rotary_pos_emb


def _mlp_forward(backend: str) -> Callable[..., torch.Tensor]:
    def forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
        if not (mlp.training and torch.is_grad_enabled()):
            own: torch.Tensor = own_forward(mlp)(x)
            return own
        out: torch.Tensor = mlp.down_proj(
            _compiled(_swiglu, backend)(mlp.gate_proj(x), mlp.up_proj(x))
        )
        return out

    return forward
