"""Fused operations put into a Hugging Face model, reversibly: `patch_loss`, `unpatch`, `patches`.

A patched Qwen2 or Qwen3 computes its loss by `kernels.dispatch` when it is given labels, and then returns no logits
(`outputs.logits` is None), in training and in evaluation. Without labels, in generation and with `logits_to_keep`,
it runs the code it came with. The class, the weights and what is saved are untouched.

The operation runs inside the call of the `lm_head` module, as its `forward`: DeepSpeed's hooks on that module gather
the weight under ZeRO-3 before it, again before its backward, and take the gradient, as they do for the projection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from wikillm.core.errors import WikiLLMError
from wikillm.kernels.dispatch import (
    LINEAR_CROSS_ENTROPY,
    Choice,
    LossKernel,
    check_float8,
    choose_linear_cross_entropy,
)
from wikillm.models.z_loss import ZLoss, add_to_stock_loss

SUPPORTED = (Qwen2ForCausalLM, Qwen3ForCausalLM)
LOSS = "linear cross entropy"
_IGNORED = -100  # Hugging Face's ignore_index
_MARK = "_wikillm_patch"  # on our functions: (what they put in, the function itself, which wrappers also carry)


def patches(model: nn.Module) -> tuple[str, ...]:
    """Names of what is patched into `model`, also when its forward was wrapped once more (accelerate does)."""
    mark = getattr(model.__dict__.get("forward"), _MARK, None)
    return () if mark is None else (mark[0],)


def patch_loss(
    model: PreTrainedModel,
    wanted: LossKernel = "auto",
    *,
    rows: int,
    device_type: str,
    z_loss: ZLoss | None = None,
) -> Choice:
    """Let `model` compute its loss as `dispatch` chooses; "stock" leaves it as it is. Returns the choice.

    Args:
        rows: tokens per micro-step, for the choice and what is said about it; other batches work too.
        z_loss: added to the loss in training, in the fused operation or to Hugging Face's loss.

    Raises WikiLLMError for a model whose forward is not known here, and for one that is patched already, and MachineError
    where the implementation asked for does not run.
    """
    choice = choose_linear_cross_entropy(
        wanted, rows=rows, vocab=int(model.config.vocab_size), device_type=device_type
    )
    if choice.name == "stock":
        if z_loss is not None:
            add_to_stock_loss(model, z_loss)
        return choice
    _check(model)
    head: Any = model.lm_head
    if choice.name == "fp8":
        check_float8(hidden=head.in_features, vocab=head.out_features, device_type=device_type)
    head.forward = MethodType(
        _mark(_head_forward(head.forward, choice.name, z_loss), choice.name), head
    )
    forward = _loss_forward(model.forward)
    model.forward = MethodType(_mark(forward, choice.name), model)  # type: ignore[method-assign]
    return choice


def unpatch(model: PreTrainedModel) -> None:
    """The model's own code again. Raises WikiLLMError when something was put on top in the meantime."""
    head: Any = model.lm_head
    for module in (model, head):
        top = getattr(module.__dict__.get("forward"), "__func__", None)
        if top is None or getattr(top, _MARK, (None, None))[1] is not top:
            raise WikiLLMError(
                f"{type(module).__name__} has no patch of WikiLLM's on top to take out.",
                got=f"patches: {', '.join(patches(module)) or 'none'}; forward is {top or 'that of the class'}",
                fix="unpatch before the model is wrapped by something else, or not at all",
            )
    del model.__dict__["forward"], head.__dict__["forward"]


@contextmanager
def fused_loss(
    model: PreTrainedModel, wanted: LossKernel = "auto", *, rows: int
) -> Iterator[PreTrainedModel]:
    """`model` with the fused loss where it is known and not there yet; as it was afterwards."""
    if patches(model) or not isinstance(model, SUPPORTED):
        yield model
        return
    choice = patch_loss(model, wanted, rows=rows, device_type=model.device.type)
    try:
        yield model
    finally:
        if choice.name != "stock":
            unpatch(model)


def _check(model: PreTrainedModel) -> None:
    if (
        not isinstance(model, SUPPORTED)
        or "forward" in model.__dict__
        or model.lm_head.bias is not None
    ):
        raise WikiLLMError(
            f"The fused loss does not know how {type(model).__name__} computes its own.",
            got=f"known: {', '.join(known.__name__ for known in SUPPORTED)}, unpatched and without a bias in lm_head; "
            f"patches here: {', '.join(patches(model)) or 'none'}",
            fix="train.loss_kernel=stock",
        )


def _mark(function: Callable[..., Any], implementation: str) -> Callable[..., Any]:
    setattr(function, _MARK, (f"{LOSS}: {implementation}", function))
    return function


def _head_forward(
    stock: Callable[..., Any], name: str, z: ZLoss | None
) -> Callable[..., torch.Tensor]:
    """lm_head(hidden) is the projection it was; lm_head(hidden, labels, count) is the loss.

    An evaluation's loss is that of the model which is exported, so it is never computed in 8 bit.
    """

    def forward(
        head: nn.Linear,
        hidden: torch.Tensor,
        labels: torch.Tensor | None = None,
        count: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        if labels is None:
            projected: torch.Tensor = stock(hidden)
            return projected
        hidden_NH, labels_N = (
            hidden.reshape(-1, hidden.shape[-1]),
            labels.reshape(-1).to(hidden.device),
        )
        if count is None:  # Hugging Face's mean: over the labels of this call
            count = (labels_N != _IGNORED).sum()
        choice = choose_linear_cross_entropy(
            "chunked" if name == "fp8" and not head.training else name,  # type: ignore[arg-type]
            rows=len(labels_N),
            vocab=head.weight.shape[0],
            device_type=hidden.device.type,
        )
        options: dict[str, Any] = {
            "count": count,
            "ignore_index": _IGNORED,
            "chunk_rows": choice.chunk_rows,
        }
        if z is not None and head.training:  # an evaluation's loss is the cross entropy
            z.latest = torch.zeros((), device=hidden.device)
            options |= {"z_loss": z.coefficient, "z_out": z.latest}
        implementation, _ = LINEAR_CROSS_ENTROPY[choice.name]
        return implementation(hidden_NH, head.weight, labels_N, **options)

    return forward


def _loss_forward(stock: Callable[..., Any]) -> Callable[..., Any]:
    """ForCausalLM.forward with the loss inside lm_head; the signature stays the stock one's (HF inspects it)."""

    @can_return_tuple
    def with_loss(model: Any, labels: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        shifted, count = kwargs.get("shift_labels"), kwargs.get("num_items_in_batch")
        if shifted is None:  # position t predicts token t + 1, and the last one nothing
            shifted = nn.functional.pad(labels, (0, 1), value=_IGNORED)[..., 1:]
        outputs = model.model(**kwargs)
        return CausalLMOutputWithPast(
            loss=model.lm_head(outputs.last_hidden_state, shifted, count),
            logits=None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @functools.wraps(stock.__func__)  # type: ignore[attr-defined]
    def forward(model: Any, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        # Positional arguments beyond input_ids, and a part of the logits, are not what a training step asks for.
        if labels is None or len(args) > 1 or not _is_zero(kwargs.get("logits_to_keep", 0)):
            return (
                stock(*args, **kwargs) if labels is None else stock(*args, labels=labels, **kwargs)
            )
        if args:
            kwargs["input_ids"] = args[0]
        kwargs.pop("logits_to_keep", None)
        return with_loss(model, labels, **kwargs)

    return forward


def _is_zero(logits_to_keep: Any) -> bool:
    return isinstance(logits_to_keep, int) and logits_to_keep == 0
