"""Compiles decoder layers by torch, one graph for all layers: `compile_layers`.

This is regional compilation: one layer's graph is compiled once, for any depth of the model, and
the loss stays outside of the graph. Calls with the training or evaluation shape and without a KV
cache use the graph. Other calls, such as generation, run the layer's own code, so that no other
length compiles; a training step of another shape also warns.

A graph break is an error (`fullgraph`), and so are endless recompilations: a silent fallback would
be slow without notice.
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
        shapes: (sequences, tokens) of the batches that use the compiled layer.
        backend: backend of torch.compile; "eager" traces without generating code, for tests.
    """
    layers = layers_of(model)
    warned: set[Shape] = set()
    for layer in layers:
        layer._compiled_call_impl = _switch(layer, frozenset(shapes), backend, warned)
    return len(layers)


def _switch(
    layer: nn.Module, shapes: frozenset[Shape], backend: str, warned: set[Shape]
) -> Callable[..., Any]:
    """The layer's call, compiled or not by its shape. `warned`: shapes already warned about."""
    # The function that nn.Module.__call__ runs; it includes the hooks, as with Module.compile.
    eager = layer._call_impl
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, backend=backend)

    def call(hidden_BTH: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shape = hidden_BTH.shape[0], hidden_BTH.shape[1]
        has_cache = kwargs.get("past_key_values") is not None
        if not has_cache and shape in shapes:
            return compiled(hidden_BTH, *args, **kwargs)
        if layer.training and torch.is_grad_enabled() and not has_cache and shape not in warned:
            warned.add(shape)
            warn(
                f"a training step of {shape[0]} x {shape[1]} tokens is not compiled: "
                f"the layers are compiled for {sorted(shapes)}"
            )
        return eager(hidden_BTH, *args, **kwargs)

    return call
