"""Where a rank holds its ranges of the parameters, under every engine.

An engine updates float32 master weights: the model's own parameters, copies of them, or flat
tensors with ranges of many. They are the keys of the optimizer's state, which has their shape. Each
function gives the layout of one kind of engine; `names` are those of the parameters, by their id.
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
"""Names in the optimizer's state."""


@dataclass(frozen=True, slots=True)
class WholeMomentum:
    """Muon's momentum of whole matrices, one after the other: where one begins, and all elements.

    ZeRO 1 and 2 keep it so: a matrix on two ranks has its whole momentum on both.
    """

    offset: int
    numel: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A range of one parameter on this rank.

    Attributes:
        tensor: float32 master weights; the key of their state in the optimizer.
        offset: of the range in `tensor`, flattened.
        start: of the range in the parameter, flattened.
        count: elements; 0 where this rank holds none of the parameter.
        group: options of the parameter in the optimizer.
    """

    tensor: torch.Tensor
    offset: int
    start: int
    count: int
    group: Mapping[str, Any]
    whole_momentum: WholeMomentum | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The state that the optimizer keeps for the parameter."""
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
        """Of the optimizer's state of that kind, for all of `tensor`."""
        if kind == "momentum" and self.whole_momentum is not None:
            return (self.whole_momentum.numel,)
        return tuple(self.tensor.shape)

    def position(self, kind: str) -> int:
        """Where the parameter's first element would lie in the weights or state of that kind."""
        if kind == "momentum" and self.whole_momentum is not None:
            return self.whole_momentum.offset
        return self.offset - self.start


@dataclass(frozen=True, slots=True)
class Layout:
    """What one rank holds.

    Attributes:
        optimizer: the one with the state, inside all wrappers.
        slots: by name of the parameter, every parameter.
        is_replicated: whether all ranks hold the same, whole.
        publish: writes changed master weights to the model. (all ranks)
    """

    optimizer: torch.optim.Optimizer
    slots: Mapping[str, Slot]
    is_replicated: bool
    publish: Callable[[], None]


def replicated_layout(names: Mapping[int, str], optimizer: Any) -> Layout:
    """One process, DDP and ZeRO 0, whose ranks all hold everything.

    Args:
        optimizer: torch's, or DeepSpeed's wrapper of one for 16-bit weights.
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


def zero12_layout(names: Mapping[int, str], zero: Any) -> Layout:
    """ZeRO 1 and 2: each rank has an equal part of every group, flattened.

    `_hp_mapping` of a parameter says where this rank's part of it lies, in the parameter and in the
    flat float32 tensor of its group. It is None where the rank has nothing of it.

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
            found = parameter._hp_mapping
            slots[names[id(parameter)]] = Slot(
                tensor=flat,
                offset=found.hp_fragment_address.start if found else 0,
                start=found.lp_fragment_address.start if found else 0,
                count=found.lp_fragment_address.numel if found else 0,
                group=group,
                whole_momentum=momentum.get(id(parameter)),
            )

    def publish() -> None:
        zero.update_lp_params()
        # What reads single tensors of the optimizer's state finds the ones that exist now.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()

    return Layout(zero.optimizer, slots, is_replicated=False, publish=publish)


def _whole_momentum(parameters: list[Any]) -> dict[int, WholeMomentum]:
    """Of the matrices that this rank has a part of, by id, in their order in the momentum."""
    numel = sum(parameter.numel() for parameter in parameters)
    found = {}
    offset = 0
    for parameter in parameters:
        found[id(parameter)] = WholeMomentum(offset, numel)
        offset += parameter.numel()
    return found


def zero3_layout(names: Mapping[int, str], zero: Any) -> Layout:
    """ZeRO 3: each rank has ceil(elements / ranks) elements of each parameter; the last are padded.

    Parts of one sub-group of parameters lie one after the other in a flat float32 tensor.

    Args:
        zero: a DeepSpeedZeroOptimizer_Stage3.

    Raises ConfigError where a part of the state is on a disk, or on the GPU beside an offload.
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
        zero.checkpoint_event_prologue()  # drops gathered parameters, which have the old values
        for index in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        zero.checkpoint_event_epilogue()  # gathers those that stay whole; drops hpZ's copies

    return Layout(zero.optimizer, slots, is_replicated=False, publish=publish)


def _refuse_unsupported(zero: Any) -> None:
    if zero.swap_optimizer or zero.params_in_nvme_and_cpu:
        raise ConfigError(
            "Checkpoints do not hold a state that DeepSpeed keeps on a disk.",
            got='"device": "nvme" in offload_optimizer or offload_param',
            fix='"device": "cpu", or more ranks',
        )
    if zero.offload_optimizer and zero.partial_offload < 1.0:
        raise ConfigError(
            "Checkpoints do not hold a state that DeepSpeed offloads in part.",
            got=f'"ratio": {zero.partial_offload} in offload_optimizer',
            fix='leave "ratio" out',
        )
