"""Shared by all patches: the supported models, their parts, and how to undo a patch.

A patch replaces `forward` on instances, never on classes. Weights, names and saved files stay as
they are, and deleting the attribute restores the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from wikillm.core.errors import WikiLLMError
from wikillm.models.shape import ARCHITECTURES

SUPPORTED = tuple(model for _, model in ARCHITECTURES.values())


def layers_of(model: PreTrainedModel) -> list[Any]:
    """The decoder layers, in order."""
    decoder: Any = model.get_decoder()
    return list(decoder.layers)


def mlps_of(model: PreTrainedModel) -> list[Any]:
    """The MLP of each decoder layer."""
    return [layer.mlp for layer in layers_of(model)]


def norms_of(model: PreTrainedModel) -> list[Any]:
    """Every RMSNorm of the decoder, those inside attention included."""
    decoder: Any = model.get_decoder()
    return [module for module in decoder.modules() if type(module) is type(decoder.norm)]


def is_patched(module: nn.Module) -> bool:
    """Whether `forward` of this instance is not that of its class."""
    return "forward" in module.__dict__


def patch_forward(module: nn.Module, function: Callable[..., Any]) -> None:
    """Make `function(module, ...)` the forward of `module`."""
    module.forward = MethodType(function, module)


def restore_forward(*modules: nn.Module) -> None:
    """Restore the class's forward on each of these modules."""
    for module in modules:
        module.__dict__.pop("forward", None)


def remove_patches(model: PreTrainedModel) -> None:
    """Restore the model's own code in all of its modules, compiled layers included."""
    for module in model.modules():
        restore_forward(module)
        module._compiled_call_impl = None


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """The class's forward, bound to `module` in a form that torch.compile can trace."""
    return partial(type(module).forward, module)


def check_supported(
    model: PreTrainedModel, what: str, modules: Iterable[nn.Module], *, fix: str, mlp: bool = False
) -> None:
    """Raise WikiLLMError unless the model is supported and none of `modules` is patched.

    Args:
        what: name of the patch, as the subject of the message.
        mlp: whether the MLP must be a SwiGLU.
    """
    activation = getattr(model.config, "hidden_act", None)
    patched = sum(is_patched(module) for module in modules)
    if isinstance(model, SUPPORTED) and not patched and not (mlp and activation != "silu"):
        return
    known = ", ".join(kind.__name__ for kind in SUPPORTED)
    raise WikiLLMError(
        f"{what} does not know the layers of this {type(model).__name__}.",
        got=f"activation {activation}, {patched} modules patched already; "
        f"known: {known}{' with silu' if mlp else ''}, unpatched",
        fix=fix,
    )
