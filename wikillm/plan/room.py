"""What a run on given GPUs keeps in memory, for the run itself: how many sequences of a micro-step fit.

`setup_of_run` is the one place where a configuration becomes a `Setup`. The planner's formulas are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from wikillm.config.precision import Precision
from wikillm.config.schema import RunConfig
from wikillm.core.errors import ConfigError
from wikillm.plan.job import describe_shape, is_masked
from wikillm.plan.memory import KEPT_FREE, memory_per_rank
from wikillm.plan.setup import Device, Setup, loss_of, setup_from_recipe


@dataclass(frozen=True, slots=True)
class GpuRoom:
    """The GPU of a rank. `memory`: bytes that the driver reports."""

    memory: int
    ranks_per_node: int
    precision: Precision


def sequences_that_fit(
    config: RunConfig, room: GpuRoom, *, ranks: int, vocab_size: int, wanted: int
) -> int:
    """The largest micro-batch up to `wanted` that fits the GPU; 1 where none does, since this is an estimate.

    Where the DeepSpeed JSON cannot be read the answer is `wanted`: the check of the JSON refuses the run.
    """
    shape = describe_shape(config.model, vocab_size, config.train.sequence_length)
    setup = setup_of_run(
        config,
        ranks=ranks,
        ranks_per_node=room.ranks_per_node,
        micro=1,
        accumulation=1,
        precision=room.precision,
    )
    if setup is None:
        return wanted
    usable = (1 - KEPT_FREE) * room.memory
    fitting = (
        micro
        for micro in range(wanted, 1, -1)
        if memory_per_rank(shape, replace(setup, micro=micro)).total <= usable
    )
    return next(fitting, 1)


def setup_of_run(
    config: RunConfig,
    *,
    ranks: int,
    ranks_per_node: int,
    micro: int,
    accumulation: int,
    precision: Precision,
    device: Device = "cuda",
) -> Setup | None:
    """How the run trains; without DeepSpeed plain data parallel. None where the DeepSpeed JSON cannot be read."""
    train = config.train
    given: dict[str, Any] = {
        "ranks": ranks,
        "ranks_per_node": ranks_per_node,
        "micro": micro,
        "accumulation": accumulation,
        "precision": precision,
        "checkpointing": train.gradient_checkpointing,
        "loss": loss_of(train.loss_kernel),
        "device": device,
    }
    more: dict[str, Any] = {
        "tiled_mlp": train.mlp_kernel == "tiled",
        "masked": is_masked(config),
        "muon": train.optimizer == "muon",
        "ema": train.ema_decay > 0,
        "sequence_parallel": train.sequence_parallel_size,
    }
    if config.deepspeed.config is None:
        return Setup(recipe="ddp", stage=0, **given, **more)
    try:
        found = setup_from_recipe(
            config.deepspeed.config, hidden_size=config.model.hidden_size, **given
        )
    except ConfigError:
        return None
    return replace(found, **more)
