"""Layout of DeepSpeed's ZeRO 3: each rank has an equal part of every parameter.

Parts have ceil(elements / ranks) elements; the last ones are padded. Parts of one sub-group of
parameters lie one after the other in a flat float32 tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wikillm.core.errors import ConfigError
from wikillm.train.fragments.layout import Layout, Slot


def zero3_layout(names: Mapping[int, str], zero: Any) -> Layout:
    """The layout of a DeepSpeedZeroOptimizer_Stage3.

    Args:
        names: of the parameters, by their id.

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
