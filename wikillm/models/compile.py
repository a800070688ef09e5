"""Decoder layers compiled by torch, one graph for all of them: `compile_layers`, `compiled_graphs`.

Regional compilation: the layer is the region, so the graph is compiled once however deep the model is, and the loss
stays outside of it. Only calls of the training and evaluation shape without a KV cache take the graph; everything
else, generation above all, runs the layer's own code, so that no other length compiles anything. A training step of
another shape does so too, with a warning.

A graph break is an error (`fullgraph`), and so is a recompilation without end: a layer that falls back in silence
would be as slow as before while everybody believes it compiled. Names, weights and what is saved stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from wikillm.core.log import warn

Shape = tuple[int, int]  # sequences, tokens


def compile_layers(
    model: PreTrainedModel, shapes: Collection[Shape], *, backend: str = "inductor"
) -> int:
    """Compile every decoder layer of `model` in place, at its first call. Returns the number of layers.

    Args:
        shapes: (sequences, tokens) of the batches that take the compiled layer.
        backend: of torch.compile; "eager" traces without generating code, for tests.
    """
    layers: Any = model.get_decoder().layers
    others: set[Shape] = set()
    for layer in layers:
        layer._compiled_call_impl = _switch(layer, frozenset(shapes), backend, others)
    return len(layers)


def restore_layers(model: PreTrainedModel) -> None:
    """The layers' own code again."""
    layers: Any = model.get_decoder().layers
    for layer in layers:
        layer._compiled_call_impl = None


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far, all models together."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _switch(
    layer: nn.Module, shapes: frozenset[Shape], backend: str, others: set[Shape]
) -> Callable[..., Any]:
    """`others`: training shapes that took the layer's own code, each warned about once for all layers."""
    eager = (
        layer._call_impl
    )  # what nn.Module.__call__ runs; hooks are inside, as with Module.compile
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, backend=backend)

    def call(hidden_BTH: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shape = hidden_BTH.shape[0], hidden_BTH.shape[1]
        has_cache = kwargs.get("past_key_values") is not None
        if not has_cache and shape in shapes:
            return compiled(hidden_BTH, *args, **kwargs)
        if layer.training and torch.is_grad_enabled() and not has_cache and shape not in others:
            others.add(shape)
            warn(
                f"a training step of {shape[0]} x {shape[1]} tokens is not compiled: the layers are for {sorted(shapes)}"
            )
        return eager(hidden_BTH, *args, **kwargs)

    return call
