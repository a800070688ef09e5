"""The decoder layers' q, k and v as one matrix product, gate and up as another, reversibly: `merge_projections`.

The operation is `kernels.merged_linear`; parameters, their names and what is saved stay as they are, so the switch can
change between a checkpoint and its resumption, and an export has nothing to split. Only where gradients are computed:
evaluation and generation, whose few rows would not pay for the copy of the weights, run the layers' own code.

The product wants several modules' weights at once. As in `tiled_mlp` it runs inside the nested calls of these modules:
under ZeRO-3 DeepSpeed's hooks on them gather each weight once before it, and once more before its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from wikillm.core.errors import WikiLLMError
from wikillm.kernels.merged_linear import merged_linear, swiglu_of_halves

PROJECTIONS = "projections"
SUPPORTED = (Qwen2ForCausalLM, Qwen3ForCausalLM)
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
Then = Callable[[torch.Tensor], torch.Tensor]


def merge_projections(model: PreTrainedModel) -> str:
    """Merge the projections of every decoder layer of `model`. Returns which, for the log.

    A tiled MLP keeps its own products. Raises WikiLLMError for a model whose layers are not known here, and for one that
    is merged already.
    """
    _check(model)
    merged = ["q k v"]
    for layer in _layers(model):
        _patch(layer.self_attn, _ATTENTION, _attention_forward(layer.self_attn.forward))
        if "forward" not in layer.mlp.__dict__:
            _patch(layer.mlp, _MLP, _mlp_forward)
            merged = ["q k v", "gate up"]
    return f"merged, {' and '.join(merged)}" + ("" if len(merged) > 1 else " (the MLP is tiled)")


def unmerge_projections(model: PreTrainedModel) -> None:
    """The layers' own code again; a tiled MLP stays tiled."""
    for layer in _layers(model):
        for module, names in ((layer.self_attn, _ATTENTION), (layer.mlp, _MLP)):
            if module.__dict__.pop("merges", False):
                for part in (module, *(getattr(module, name) for name in names)):
                    del part.__dict__["forward"]


def _layers(model: PreTrainedModel) -> Sequence[Any]:
    layers: Any = model.get_decoder().layers
    return list(layers)


def _check(model: PreTrainedModel) -> None:
    activation = getattr(model.config, "hidden_act", None)
    is_known = isinstance(model, SUPPORTED) and activation == "silu"
    if is_known and not any("forward" in layer.self_attn.__dict__ for layer in _layers(model)):
        return
    raise WikiLLMError(
        f"Merged projections do not know the layers of {type(model).__name__}.",
        got=f"known: {', '.join(known.__name__ for known in SUPPORTED)} with silu, unpatched; activation here: {activation}",
        fix="train.merged_projections=off",
    )


def _patch(module: Any, names: tuple[str, ...], forward: Callable[..., Any]) -> None:
    for name in names:
        part = getattr(module, name)
        part.forward = MethodType(_projection(part.forward), part)
    module.forward = MethodType(forward, module)
    module.merges = True


def _projection(stock: Any) -> Callable[..., torch.Tensor]:
    """The projection it was; called with `then`, what that computes while this module's weight is there."""
    own = stock.__func__  # not the bound method: a copy of the model would compute with this one's weights

    def forward(part: nn.Linear, x: torch.Tensor, then: Then | None = None) -> torch.Tensor:
        out: torch.Tensor = own(part, x) if then is None else then(x)
        return out

    return forward


def _merged(module: Any, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
    """All projections side by side, inside the nested calls of their modules."""
    parts = [getattr(module, name) for name in names]

    def product(x: torch.Tensor) -> torch.Tensor:
        weights, biases = [part.weight for part in parts], [part.bias for part in parts if part.bias is not None]
        return merged_linear(x, weights, biases)

    then: Then = product
    for part in reversed(parts[1:]):
        then = _inside(part, then)
    out: torch.Tensor = parts[0](x, then=then)  # a keyword: DeepSpeed's hooks look into positional arguments only
    return out


def _inside(part: Any, then: Then) -> Then:
    def call(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = part(x, then=then)
        return out

    return call


class _Projected:
    """An attention module whose projections are computed already, as `self` of its own forward."""

    def __init__(self, attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        self._attention = attention
        self.q_proj, self.k_proj, self.v_proj = (_Answer(each) for each in (q, k, v))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)


class _Answer:
    def __init__(self, answer: torch.Tensor) -> None:
        self._answer = answer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._answer


def _attention_forward(stock: Any) -> Callable[..., Any]:
    own = stock.__func__

    def forward(attention: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(attention, hidden_states, *args, **kwargs)
        sizes = [getattr(attention, name).out_features for name in _ATTENTION]
        q, k, v = _merged(attention, _ATTENTION, hidden_states).split(sizes, -1)
        return own(_Projected(attention, q, k, v), hidden_states, *args, **kwargs)

    return forward


def _mlp_forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    # Neither way calls the activation's module: ZeRO-3 fetches ahead only while the modules come in the order it recorded.
    if torch.is_grad_enabled():
        inner = swiglu_of_halves(_merged(mlp, _MLP, x))
    else:
        inner = F.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
    out: torch.Tensor = mlp.down_proj(inner)
    return out
