"""Recomputes the activations of decoder layers in the backward pass: `checkpoint_layers`.

A layer keeps these tensors from the forward to the backward pass, in elements per token (h hidden,
H heads, K key heads, d head width, f intermediate):

    full                 its input                                  h
    full_but_attention   and attention's output and statistics      + H d
    selective            and the matrix products that are needed    + (H + 2 K) d + h + 2 f

Selective checkpointing recomputes norms, rotations and SiLU, but no product: the products' inputs
follow from earlier products' outputs. The last product's output is not kept, since no gradient
needs it. A tiled MLP keeps nothing and recomputes itself. Recomputation runs the layer's modules
again, so ZeRO-3 gathers the weights once more.

The checkpoint is inside the layer's `forward`, not around its call as in some versions of
transformers. So a compiled layer contains the checkpoint, and the compiler keeps the same tensors.
Checkpointing is active in training only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from wikillm.config.schema_types import Checkpointing
from wikillm.core.errors import WikiLLMError
from wikillm.models.patching import (
    is_patched,
    layers_of,
    own_forward,
    patch_forward,
)

_PRODUCTS = {"aten::mm": 1, "aten::addmm": 2}
"""Matrix-product operators, each with the index of its argument that is the weight's transpose."""
_DESCRIPTION = {
    "selective": "keep attention and matrix products, recompute the rest",
    "full_but_attention": "keep attention, recompute the rest",
    "full": "keep their input, recompute everything",
}


def checkpoint_layers(model: PreTrainedModel, kind: Checkpointing) -> str:
    """Let every decoder layer of `model` recompute in its backward. Returns a phrase for the log.

    Raises WikiLLMError for layers whose forward is patched already.
    """
    layers = layers_of(model)
    assert kind != "none", "the caller skips kind 'none'"
    if patched := sum(map(is_patched, layers)):
        raise WikiLLMError(
            "Layers whose forward is patched already cannot be checkpointed.",
            got=f"{patched} of {len(layers)} layers of {type(model).__name__}",
            fix="call `remove_patches` before checkpointing with another kind",
        )
    # Restoring the generators costs a synchronisation per layer, which only dropout needs.
    dropout = float(getattr(model.config, "attention_dropout", 0.0) or 0.0)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": dropout > 0}
    if kind != "full":
        last = None if kind == "full_but_attention" else int(model.config.intermediate_size)
        options["context_fn"] = partial(_contexts, partial(_policy, kind, last))
    for layer in layers:
        patch_forward(layer, _forward(options))
    return f"{len(layers)} layers {_DESCRIPTION[kind]}"


def _forward(options: dict[str, Any]) -> Callable[..., Any]:
    def forward(layer: nn.Module, hidden_BTH: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        own_call = own_forward(layer)
        is_training = (
            layer.training and torch.is_grad_enabled() and kwargs.get("past_key_values") is None
        )
        if not is_training:
            return own_call(hidden_BTH, *args, **kwargs)
        return checkpoint(partial(own_call, **kwargs), hidden_BTH, *args, **options)

    return forward


def _contexts(policy: Callable[..., bool]) -> tuple[Any, Any]:
    """Contexts for the forward and its recomputation: torch's in a compiled layer, else ours.

    Torch's contexts require the recomputation to run the same operators as the forward. Under
    ZeRO-3 it does not: gathering weights runs operators too, and these differ while the order of
    modules is not known yet, such as after an evaluation.
    """
    if torch.compiler.is_compiling():
        return create_selective_checkpoint_contexts(policy)  # type: ignore[no-any-return]
    kept: deque[Any] = deque()
    return _Keep(policy, kept), _Reuse(policy, kept)


class _Keep(TorchDispatchMode):
    """Keeps the outputs that the policy selects, in order."""

    def __init__(self, policy: Callable[..., bool], kept: deque[Any]) -> None:
        super().__init__()
        self.policy = policy
        self.kept = kept

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled functions may be called inside (`compile_elementwise`)."""
        return True

    def is_kept(self, func: Any, args: Any) -> bool:
        return self.policy(None, func, *args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if self.is_kept(func, args):
            self.kept.append(tree_map_only(torch.Tensor, torch.Tensor.detach, out))
        return out


class _Reuse(_Keep):
    """Returns kept outputs instead of computing them again."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.kept.popleft() if self.is_kept(func, args) else func(*args, **kwargs or {})


def _policy(
    kind: Checkpointing, last_inputs: int | None, _: Any, op: Any, *args: Any, **kwargs: Any
) -> bool:
    """Whether to keep the output of `op`. `last_inputs`: input width of the last product."""
    name = str(op.name())
    if _is_attention(name):
        return True
    if kind == "full_but_attention" or name not in _PRODUCTS:
        return False
    return bool(args[_PRODUCTS[name]].shape[0] != last_inputs)


def _is_attention(name: str) -> bool:
    """Whether the operator is scaled_dot_product_attention, or flash-attn under any of its names.

    Flex attention compiles itself and is not visible here: it is recomputed.
    """
    namespace, _, operator = name.partition("::")
    return operator.startswith("_scaled_dot_product_") or "flash_attn" in namespace
