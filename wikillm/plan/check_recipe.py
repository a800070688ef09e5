"""Checks the DeepSpeed JSON of a run, the same for `plan`, `doctor`, `launch` and `train`.

What is not known yet (ranks of a target, precision of a GPU elsewhere) is not compared.
"""

from __future__ import annotations

from wikillm.config.deepspeed import DeepSpeedFacts, read_deepspeed
from wikillm.config.deepspeed_check import check_deepspeed
from wikillm.config.precision import Precision
from wikillm.config.resolved import Resolved
from wikillm.core.errors import ConfigError
from wikillm.plan.batch import split_batch


def check_recipe(
    resolved: Resolved,
    *,
    ranks: int | None = None,
    ranks_per_node: int | None = None,
    precision: Precision | None = None,
    has_gpu: bool | None = None,
) -> None:
    """Raises one ConfigError with every mistake of the run's DeepSpeed JSON.

    A batch that does not divide has its own error elsewhere; here it counts as unknown.
    """
    config = resolved.config
    if config.deepspeed.config is None:
        return
    micro = accumulation = None
    if ranks is not None:
        try:
            batch = split_batch(config.train, resolved.origins, ranks)
            micro = batch.micro
            accumulation = batch.accumulation
        except ConfigError:
            ranks = None
    chosen = config.train.precision
    facts = DeepSpeedFacts(
        config.train,
        hidden_size=config.model.hidden_size,
        micro_batch=micro,
        accumulation=accumulation,
        world_size=ranks,
        local_world_size=ranks_per_node,
        precision=precision if chosen == "auto" else chosen,
        has_gpu=has_gpu,
    )
    check_deepspeed(read_deepspeed(config.deepspeed.config), facts)
