"""Layout of DeepSpeed's ZeRO 1 and 2: each rank has an equal part of every group, flattened.

`_hp_mapping` of a parameter says where this rank's part of it lies, in the parameter and in the
flat float32 tensor of its group. It is None where the rank has nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wikillm.train.fragments.layout import Layout, Slot, WholeMomentum


def zero12_layout(names: Mapping[int, str], zero: Any) -> Layout:
    """The layout of a DeepSpeedZeroOptimizer, or of a BF16_Optimizer (ZeRO 1 only).

    Args:
        names: of the parameters, by their id.
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
