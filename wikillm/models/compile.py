"""Decoder layers compiled by torch, one graph for all of them: `compile_layers`.

Regional compilation: the graph of a layer is compiled once, whatever the depth of the model, and
the loss stays outside of it. Calls of the training and evaluation shape without a KV cache use the
graph. Others, such as generation, run the layer's own code, so that no other length compiles; a
training step of another shape does so with a warning.

A graph break is an error (`fullgraph`), as are endless recompilations: a layer that falls back
silently would be slow unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from wikillm.core.log import warn
from wikillm.models.patching import layers_of

Shape = tuple[int, int]  # sequences, tokens


def compile_layers(
    model: PreTrainedModel, shapes: Collection[Shape], *, backend: str = "inductor"
) -> int:
    """Compile every decoder layer in place, at its first call. Returns the number of layers.

    Args:
        shapes: (sequences, tokens) of the batches that take the compiled layer.
        backend: of torch.compile; "eager" traces without generating code, for tests.
    """
    layers = layers_of(model)
    others: set[Shape] = set()
    for layer in layers:
        layer._compiled_call_impl = _switch(layer, frozenset(shapes), backend, others)
    return len(layers)


def _switch(
    layer: nn.Module, shapes: frozenset[Shape], backend: str, others: set[Shape]
) -> Callable[..., Any]:
    """`others`: training shapes that ran the layer's own code, each warned about once."""
    # What nn.Module.__call__ runs; hooks are inside, as with Module.compile.
    eager = layer._call_impl
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, backend=backend)

    def call(hidden_BTH: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shape = hidden_BTH.shape[0], hidden_BTH.shape[1]
        has_cache = kwargs.get("past_key_values") is not None
        if not has_cache and shape in shapes:
            return compiled(hidden_BTH, *args, **kwargs)
        if layer.training and torch.is_grad_enabled() and not has_cache and shape not in others:
            others.add(shape)
            warn(
                f"a training step of {shape[0]} x {shape[1]} tokens is not compiled: "
                f"the layers are for {sorted(shapes)}"
            )
        return eager(hidden_BTH, *args, **kwargs)

    return call
