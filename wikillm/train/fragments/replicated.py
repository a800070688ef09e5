"""Layout of an engine whose ranks all hold everything: one process, DDP and DeepSpeed's ZeRO 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from wikillm.train.fragments.layout import Layout, Slot


def replicated_layout(names: Mapping[int, str], optimizer: Any) -> Layout:
    """The layout of a torch optimizer, or of DeepSpeed's wrapper of one for 16-bit weights.

    Args:
        names: of the parameters, by their id.
    """
    if hasattr(optimizer, "fp32_groups"):
        return _of_copies(names, optimizer)
    if hasattr(optimizer, "fp32_groups_flat"):
        return _of_flat_copies(names, optimizer)
    slots = {
        names[id(parameter)]: Slot(parameter, 0, 0, parameter.numel(), group)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return Layout(optimizer, slots, is_replicated=True, publish=lambda: None)


def undo_first_step(optimizer: Any) -> None:
    """Undo the step that DeepSpeed's wrapper for 16-bit weights takes when it is made (ZeRO 0).

    Its gradients are zero, but weights decay, and AdamW's bias correction would begin with step 2.
    """
    wrapper = getattr(optimizer, "optimizer", optimizer)
    if hasattr(wrapper, "fp32_groups") or hasattr(wrapper, "fp32_groups_flat"):
        wrapper.optimizer.state.clear()
        wrapper.refresh_fp32_params()


def _of_copies(names: Mapping[int, str], wrapper: Any) -> Layout:
    """FP16_UnfusedOptimizer, also for bf16: a float32 copy of each parameter."""
    groups = list(
        zip(wrapper.optimizer.param_groups, wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
    )
    slots = {
        names[id(parameter)]: Slot(copy, 0, 0, copy.numel(), group)
        for group, parameters, copies in groups
        for parameter, copy in zip(parameters, copies, strict=True)
    }

    def publish() -> None:
        for _, parameters, copies in groups:
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.data.copy_(copy.data)

    return Layout(wrapper.optimizer, slots, is_replicated=True, publish=publish)


def _of_flat_copies(names: Mapping[int, str], wrapper: Any) -> Layout:
    """FP16_Optimizer, with FusedAdam on a GPU: one flat float32 copy of each group."""
    slots = {}
    groups = zip(
        wrapper.optimizer.param_groups, wrapper.fp16_groups, wrapper.fp32_groups_flat, strict=True
    )
    for group, parameters, flat in groups:
        offset = 0
        for parameter in parameters:
            slots[names[id(parameter)]] = Slot(flat, offset, 0, parameter.numel(), group)
            offset += parameter.numel()

    def publish() -> None:
        for parameters, flat in zip(wrapper.fp16_groups, wrapper.fp32_groups_flat, strict=True):
            sizes = [parameter.numel() for parameter in parameters]
            for parameter, values in zip(parameters, torch.split(flat.data, sizes), strict=True):
                parameter.data.copy_(values.view_as(parameter))

    return Layout(wrapper.optimizer, slots, is_replicated=True, publish=publish)
