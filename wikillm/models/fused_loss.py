"""Patches a Hugging Face model with the fused loss, reversibly: `patch_loss`, `fused_loss`.

Given labels, in training or evaluation, a patched model computes its loss by `kernels.dispatch` and
returns no logits (`outputs.logits` is None). Without labels, in generation, or with
`logits_to_keep`, it runs its own code.

The operation is the `forward` of the `lm_head` module. So under ZeRO-3 DeepSpeed's hooks on that
module gather the weight before the operation and again before its backward, and take the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from wikillm.kernels.chunks import loss_chunk_rows
from wikillm.kernels.dispatch import (
    Implementation,
    check_loss_kernel,
    choose_linear_cross_entropy,
    loss_function,
)
from wikillm.models.patching import SUPPORTED, check_supported, patch_forward, restore_forward

IGNORED = -100  # Hugging Face's ignore_index
_MARK = "_wikillm_loss"  # attribute of a patched model; it stays when forward is wrapped again


def patch_loss(
    model: PreTrainedModel,
    wanted: str = "auto",
    *,
    rows: int,
    device_type: str,
) -> Implementation:
    """Let `model` compute its loss as `dispatch` chooses; "stock" leaves the model unchanged.

    Args:
        wanted: a value of train.loss_kernel.
        rows: tokens per micro-step, for the returned choice; other batch sizes work too.

    Raises WikiLLMError for an unsupported or already patched model, and MachineError if the
    requested implementation does not run here.
    """
    vocab = int(model.config.vocab_size)
    choice = choose_linear_cross_entropy(wanted, rows=rows, vocab=vocab, device_type=device_type)
    if choice.name == "stock":
        return choice
    check_supported(
        model, f"The fused loss ({choice.name})", [model], fix="train.loss_kernel=stock"
    )
    head: Any = model.lm_head
    check_loss_kernel(
        wanted, hidden=head.in_features, vocab=head.out_features, device_type=device_type
    )
    patch_forward(head, _head_forward(head.forward, choice.name))
    patch_forward(model, _loss_forward(model.forward))
    model.__dict__[_MARK] = choice.name
    return choice


@contextmanager
def fused_loss(
    model: PreTrainedModel, wanted: str = "auto", *, rows: int
) -> Iterator[PreTrainedModel]:
    """Use the fused loss within the block, if `model` is supported and not yet patched."""
    if _MARK in model.__dict__ or not isinstance(model, SUPPORTED):
        yield model
        return
    choice = patch_loss(model, wanted, rows=rows, device_type=model.device.type)
    try:
        yield model
    finally:
        if choice.name != "stock":
            restore_forward(model, model.get_output_embeddings())
            del model.__dict__[_MARK]


def _head_forward(stock: Callable[..., Any], name: str) -> Callable[..., torch.Tensor]:
    """lm_head(hidden) stays the projection; lm_head(hidden, labels, count) is the loss.

    An evaluation must measure the model that is exported, so its loss is never computed in 8 bit.
    """
    in_training = loss_function(name)
    in_evaluation = loss_function("chunked" if name == "fp8" else name)

    def forward(
        head: nn.Linear,
        hidden: torch.Tensor,
        labels: torch.Tensor | None = None,
        count: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        if labels is None:
            projected: torch.Tensor = stock(hidden)
            return projected
        hidden_NH = hidden.reshape(-1, hidden.shape[-1])
        labels_N = labels.reshape(-1).to(hidden.device)
        if count is None:  # Hugging Face's mean: over the labels of this call
            count = (labels_N != IGNORED).sum()
        rows = loss_chunk_rows(len(labels_N), head.weight.shape[0], hidden.device.type)
        options: dict[str, Any] = {"count": count, "ignore_index": IGNORED, "chunk_rows": rows}
        function = in_training if head.training else in_evaluation
        return function(hidden_NH, head.weight, labels_N, **options)

    return forward


def _loss_forward(stock: Callable[..., Any]) -> Callable[..., Any]:
    """ForCausalLM.forward with the loss inside lm_head. Its signature, which HF reads, is kept."""

    @can_return_tuple
    def with_loss(model: Any, labels: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        shifted = kwargs.get("shift_labels")
        count = kwargs.get("num_items_in_batch")
        if shifted is None:  # position t predicts token t + 1; the last position has no target
            shifted = nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
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
        # A training step has no positional arguments beyond input_ids and asks for no logits.
        if labels is None:
            return stock(*args, **kwargs)
        keep = kwargs.get("logits_to_keep", 0)
        if len(args) > 1 or not (isinstance(keep, int) and keep == 0):
            return stock(*args, labels=labels, **kwargs)
        if args:
            kwargs["input_ids"] = args[0]
        kwargs.pop("logits_to_keep", None)
        return with_loss(model, labels, **kwargs)

    return forward
