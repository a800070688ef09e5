"""What lies between a decoder layer's products, compiled by torch, reversibly: `compile_elementwise`, `restore_elementwise`.

Three functions, each one graph for all layers: RMSNorm, the rotation of queries and keys, silu(gate) * up. Each reads and
writes its tensors once, and keeps for the backward pass what it needs of them, where separate operations keep their results.
Modules, weights and hooks stay outside of the graphs, so that ZeRO-3 gathers as before, which a compiled layer does not
go with; and there is less in them than in a compiled layer, which also joins norms and residuals.

Only where gradients are computed: evaluation and generation, whose shapes differ, run the model's own code. A graph break
is an error (`fullgraph`). A tiled MLP keeps its own SwiGLU.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from wikillm.core.errors import WikiLLMError

SUPPORTED = (Qwen2ForCausalLM, Qwen3ForCausalLM)
_ROTATION = "apply_rotary_pos_emb"  # a function of HF's module, which its attention finds there
_STOCK = "_wikillm_stock"  # on our rotation: the one it replaces


def compile_elementwise(model: PreTrainedModel, *, backend: str = "inductor") -> str:
    """Compile the three functions, each at its first call. Returns what is said about it.

    The rotation is replaced for all models of this architecture in the process. Raises WikiLLMError for a model whose
    layers are not known here, and for one that is compiled so already.
    """
    _check(model)
    compiled = ["norms", "rotation"]
    for norm in _norms(model):
        norm.forward = MethodType(_norm_forward(backend), norm)
    modeling: Any = sys.modules[type(model).__module__]
    if not hasattr(modeling.apply_rotary_pos_emb, _STOCK):
        setattr(modeling, _ROTATION, _rotation(modeling.apply_rotary_pos_emb, backend))
    for mlp in _mlps(model):
        if "forward" not in mlp.__dict__:
            mlp.forward = MethodType(_mlp_forward(backend), mlp)
            compiled = ["norms", "rotation", "SwiGLU"]
    return f"{', '.join(compiled)}, each a function of its own"


def restore_elementwise(model: PreTrainedModel) -> None:
    """The model's own code again. An MLP that was patched by something else stays so."""
    for module in (*_norms(model), *(mlp for mlp in _mlps(model) if _is_ours(mlp))):
        module.__dict__.pop("forward", None)
    modeling: Any = sys.modules[type(model).__module__]
    setattr(
        modeling,
        _ROTATION,
        getattr(modeling.apply_rotary_pos_emb, _STOCK, modeling.apply_rotary_pos_emb),
    )


def _norms(model: PreTrainedModel) -> Iterator[Any]:
    decoder: Any = model.get_decoder()
    kind = type(decoder.norm)
    return (module for module in decoder.modules() if type(module) is kind)


def _mlps(model: PreTrainedModel) -> list[Any]:
    layers: Any = model.get_decoder().layers
    return [layer.mlp for layer in layers]


def _is_ours(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return hasattr(getattr(forward, "__func__", None), _STOCK)


def _check(model: PreTrainedModel) -> None:
    activation = getattr(model.config, "hidden_act", None)
    is_known = isinstance(model, SUPPORTED) and activation == "silu"
    if is_known and not any("forward" in norm.__dict__ for norm in _norms(model)):
        return
    raise WikiLLMError(
        f"Norms, rotation and SwiGLU of {type(model).__name__} cannot be compiled.",
        got=f"known: {', '.join(known.__name__ for known in SUPPORTED)} with silu, unpatched; activation here: {activation}",
        fix="train.compile=off",
    )


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
    cos, sin = cos_BTd[:, None], sin_BTd[:, None]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    return rotated(q_BHTd), rotated(k_BKTd)


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def _norm_forward(backend: str) -> Callable[..., torch.Tensor]:
    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        if not (norm.training and torch.is_grad_enabled()):
            own: torch.Tensor = type(norm).forward(norm, x)
            return own
        rows = x.reshape(-1, x.shape[-1])  # one shape for whatever stands before the last dimension
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
            own: torch.Tensor = type(mlp).forward(mlp, x)
            return own
        out: torch.Tensor = mlp.down_proj(
            _compiled(_swiglu, backend)(mlp.gate_proj(x), mlp.up_proj(x))
        )
        return out

    setattr(forward, _STOCK, True)
    return forward
