"""Checks the DeepSpeed JSON of a run; `plan`, `doctor`, `launch` and `train` use the same check.

Values that are not known yet (the ranks of a target, the precision of a remote GPU) are not
checked.
"""

from __future__ import annotations

from wikillm.config.deepspeed import DeepSpeedRun, read_deepspeed
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
    """Raise one ConfigError that lists every mistake in the run's DeepSpeed JSON.

    A value that is None is unknown, and not checked. A batch that does not divide has its own error
    elsewhere, and counts as unknown here.
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
    run = DeepSpeedRun(
        config.train,
        hidden_size=config.model.hidden_size,
        micro_batch=micro,
        accumulation=accumulation,
        world_size=ranks,
        local_world_size=ranks_per_node,
        precision=precision if chosen == "auto" else chosen,
        has_gpu=has_gpu,
    )
    check_deepspeed(read_deepspeed(config.deepspeed.config), run)
