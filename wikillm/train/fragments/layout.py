"""Where a rank holds its ranges of the parameters, under every engine.

An engine updates float32 master weights: the model's own parameters, copies of them, or flat
tensors that hold ranges of many parameters. These tensors are the keys of the optimizer's state,
whose tensors have their shapes. Each function returns the layout of one kind of engine; `names`
maps the id of a parameter to its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wikillm.core.errors import ConfigError

STATE_KEYS: Mapping[str, str] = {
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
    "momentum": "momentum_buffer",
}
"""Kind of tensor -> its key in the optimizer's state."""


@dataclass(frozen=True, slots=True)
class WholeMomentum:
    """Place of a matrix in ZeRO 1 and 2's momentum of Muon, a flat tensor of whole matrices.

    A matrix that lies on two ranks has its whole momentum on both.

    Attributes:
        offset: first element of the matrix.
        numel: elements of all matrices together.
    """

    offset: int
    numel: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A range of one parameter on this rank.

    Attributes:
        tensor: float32 master weights; the key of their state in the optimizer.
        offset: first element of the range in the flattened `tensor`.
        start: first element of the range in the flattened parameter.
        count: number of elements; 0 if this rank holds none of the parameter.
        group: the optimizer's options for the parameter.
        whole_momentum: see `WholeMomentum`; None if the momentum is partitioned as the weights.
    """

    tensor: torch.Tensor
    offset: int
    start: int
    count: int
    group: Mapping[str, Any]
    whole_momentum: WholeMomentum | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of state that the optimizer keeps for the parameter."""
        if self.group.get("use_muon"):
            return ("momentum",)
        if "betas" not in self.group or self.group.get("amsgrad"):
            raise ConfigError(
                "Checkpoints hold the state of AdamW and Muon only.",
                got=f"an optimizer with the options {', '.join(sorted(self.group))}",
                fix="train.optimizer=adamw or muon, without an optimizer in the DeepSpeed file",
            )
        return ("exp_avg", "exp_avg_sq")

    def state_shape(self, kind: str) -> tuple[int, ...]:
        """Shape of the optimizer's state of that kind, for all of `tensor`."""
        if kind == "momentum" and self.whole_momentum is not None:
            return (self.whole_momentum.numel,)
        return tuple(self.tensor.shape)

    def position(self, kind: str) -> int:
        """Index of the parameter's first element in the flattened weights or state of that kind.

        The index may be negative when another rank holds that element.
        """
        if kind == "momentum" and self.whole_momentum is not None:
            return self.whole_momentum.offset
        return self.offset - self.start


@dataclass(frozen=True, slots=True)
class Layout:
    """The ranges that one rank holds.

    Attributes:
        optimizer: the optimizer that holds the state, without its wrappers.
        slots: the slot of every parameter, by its name.
        is_replicated: whether every rank holds all weights and state.
        publish: copies changed master weights to the model. (all ranks)
    """

    optimizer: torch.optim.Optimizer
    slots: Mapping[str, Slot]
    is_replicated: bool
    publish: Callable[[], None]


def replicated_layout(names: Mapping[int, str], optimizer: Any) -> Layout:
    """The layout of one process, DDP and ZeRO 0, where every rank holds everything.

    Args:
        optimizer: torch's optimizer, or DeepSpeed's wrapper of one for 16-bit weights.
    """
    if _has_copies(optimizer):
        return _of_copies(names, optimizer)
    slots = {
        names[id(parameter)]: Slot(parameter, 0, 0, parameter.numel(), group)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return Layout(optimizer, slots, is_replicated=True, publish=lambda: None)


def undo_first_step(optimizer: Any) -> None:
    """Undo the step that DeepSpeed's wrapper for 16-bit weights takes when it is made (ZeRO 0).

    That step has zero gradients, but it decays weights, and AdamW's bias correction would then
    begin with step 2.
    """
    wrapper = getattr(optimizer, "optimizer", optimizer)
    if _has_copies(wrapper):
        wrapper.optimizer.state.clear()
        wrapper.refresh_fp32_params()


def _has_copies(optimizer: Any) -> bool:
    return hasattr(optimizer, "fp32_groups")


def _of_copies(names: Mapping[int, str], wrapper: Any) -> Layout:
    """ZeRO 0 with 16-bit weights: FP16_UnfusedOptimizer, also for bf16, makes a float32 copy of
    each parameter. (DeepSpeed makes flat copies for its FusedAdam, which no run has.)"""
    groups = list(zip(wrapper.optimizer.param_groups, wrapper.fp16_groups, strict=True))
    slots = {
        names[id(parameter)]: Slot(copy, 0, 0, copy.numel(), group)
        for group, members in groups
        for parameter, copy in zip(members, group["params"], strict=True)
    }

    def publish() -> None:
        for group, members in groups:
            for parameter, copy in zip(members, group["params"], strict=True):
                parameter.data.copy_(copy.data)

    return Layout(wrapper.optimizer, slots, is_replicated=True, publish=publish)


def zero12_layout(names: Mapping[int, str], zero: Any) -> Layout:
    """ZeRO 1 and 2: each rank has an equal part of every group, flattened.

    A parameter's `_hp_mapping` gives the place of this rank's part, in the parameter and in the
    flat float32 tensor of its group. It is None if the rank has no part of the parameter.

    Args:
        zero: a DeepSpeedZeroOptimizer, or a BF16_Optimizer (ZeRO 1 only).
    """
    slots = {}
    groups = zero.bit16_groups if hasattr(zero, "bit16_groups") else zero.bf16_groups
    for index, parameters in enumerate(groups):
        group = zero.optimizer.param_groups[index]
        flat = group["params"][0]
        momentum = _whole_momentum(zero.params_in_partition[index]) if group.get("use_muon") else {}
        for parameter in parameters:
            mapping = parameter._hp_mapping
            slots[names[id(parameter)]] = Slot(
                tensor=flat,
                offset=mapping.hp_fragment_address.start if mapping else 0,
                start=mapping.lp_fragment_address.start if mapping else 0,
                count=mapping.lp_fragment_address.numel if mapping else 0,
                group=group,
                whole_momentum=momentum.get(id(parameter)),
            )

    def publish() -> None:
        zero.update_lp_params()
        # Relink DeepSpeed's views of single tensors to the present optimizer state.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()

    return Layout(zero.optimizer, slots, is_replicated=False, publish=publish)


def _whole_momentum(parameters: list[Any]) -> dict[int, WholeMomentum]:
    """Places in Muon's momentum, by id, of the matrices of which this rank has a part."""
    numel = sum(parameter.numel() for parameter in parameters)
    places = {}
    offset = 0
    for parameter in parameters:
        places[id(parameter)] = WholeMomentum(offset, numel)
        offset += parameter.numel()
    return places


def zero3_layout(names: Mapping[int, str], zero: Any) -> Layout:
    """ZeRO 3: each rank has ceil(elements / ranks) elements of each parameter, padded at the end.

    The parts of a sub-group of parameters lie one after the other in a flat float32 tensor.

    Args:
        zero: a DeepSpeedZeroOptimizer_Stage3.

    Raises ConfigError if a part of the state is on a disk, or the optimizer is offloaded in part.
    """
    _refuse_unsupported(zero)
    slots = {}
    for index, parameters in enumerate(zero.fp16_groups):
        group = zero.optimizer.param_groups[zero.sub_group_to_group_id[index]]
        offset = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            start = zero._get_param_partition_rank(parameter) * size
            slots[names[id(parameter)]] = Slot(
                tensor=zero.fp32_partitioned_groups_flat[index],
                offset=offset,
                start=start,
                count=max(0, min(size, parameter.ds_numel - start)),
                group=group,
            )
            offset += size

    def publish() -> None:
        zero.checkpoint_event_prologue()  # drops gathered parameters, which hold the old values
        for index in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        zero.checkpoint_event_epilogue()  # gathers the persistent parameters; drops hpZ's copies

    return Layout(zero.optimizer, slots, is_replicated=False, publish=publish)


def _refuse_unsupported(zero: Any) -> None:
    if zero.swap_optimizer or zero.params_in_nvme_and_cpu:
        raise ConfigError(
            "A state that DeepSpeed keeps on a disk (NVMe) cannot be saved in checkpoints.",
            got='"device": "nvme" in offload_optimizer or offload_param',
            fix='set "device": "cpu", or use more ranks without offload',
        )
    if zero.offload_optimizer and zero.partial_offload < 1.0:
        raise ConfigError(
            "A state that DeepSpeed offloads in part cannot be saved in checkpoints.",
            got=f'"ratio": {zero.partial_offload} in offload_optimizer',
            fix='remove "ratio" from the DeepSpeed file',
        )
