"""The DeepSpeed JSON of a run, checked as far as the machines are known: `plan`, `doctor`, `launch` and `train` refuse the same.

What is not known yet (ranks of a target, precision of a GPU elsewhere) is not compared; the rest is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wikillm.config.deepspeed import DeepSpeedFacts, lookup, read_deepspeed
from wikillm.config.deepspeed_check import check_deepspeed
from wikillm.config.resolved import Resolved
from wikillm.config.schema import RunConfig
from wikillm.core.errors import ConfigError, Problems
from wikillm.plan.batch import split_batch
from wikillm.plan.setup import Precision


def check_recipe(
    resolved: Resolved,
    *,
    ranks: int | None = None,
    ranks_per_node: int | None = None,
    precision: Precision | None = None,
    has_gpu: bool | None = None,
) -> None:
    """Raises one ConfigError with every mistake of the run's DeepSpeed JSON, in itself and beside the run.

    A batch that does not divide is refused elsewhere, in its own words; here it leaves the batch unknown.
    """
    config = resolved.config
    if config.deepspeed.config is None:
        return
    micro = accumulation = None
    if ranks is not None:
        try:
            batch = split_batch(resolved, ranks)
            micro, accumulation = batch.micro, batch.accumulation
        except ConfigError:
            ranks = None
    chosen = config.train.precision
    facts = facts_of_run(
        config,
        micro_batch=micro,
        accumulation=accumulation,
        ranks=ranks,
        ranks_per_node=ranks_per_node,
        precision=precision if chosen == "auto" else chosen,
        has_gpu=has_gpu,
    )
    file = read_deepspeed(config.deepspeed.config)
    check_deepspeed(file, facts)
    check_combinations(config, file.json)


def facts_of_run(
    config: RunConfig,
    *,
    micro_batch: int | None,
    accumulation: int | None,
    ranks: int | None,
    ranks_per_node: int | None,
    precision: Precision | None,
    has_gpu: bool | None,
) -> DeepSpeedFacts:
    """What the run decides and a DeepSpeed JSON must agree with; None is not known."""
    train = config.train
    return DeepSpeedFacts(
        micro_batch=micro_batch,
        accumulation=accumulation,
        world_size=ranks,
        local_world_size=ranks_per_node,
        max_grad_norm=train.max_grad_norm,
        precision=precision,
        hidden_size=config.model.hidden_size,
        learning_rate=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        has_gpu=has_gpu,
        optimizer=train.optimizer,
    )


def check_combinations(config: RunConfig, json: Mapping[str, Any]) -> None:
    """Settings of the run that a recipe excludes. Raises ConfigError with all of them."""
    problems, train, recipe = Problems(ConfigError), config.train, config.deepspeed.config
    zero2 = "--deepspeed zero2 where the weights fit"
    offloads = str(lookup(json, "zero_optimization.offload_optimizer.device", "none")) != "none"
    if train.batch_ramp_from is not None and offloads:
        # ZeRO-1 and 2 keep a copy of the accumulation for gradients on the host; ZeRO-3 with offload was not tried.
        problems.add(
            "A batch ramp does not go with DeepSpeed's optimizer offload, which keeps the accumulation it began with.",
            got=f"train.batch_ramp_from={train.batch_ramp_from}, {recipe}",
            fix="a DeepSpeed file without offload_optimizer, or no batch ramp",
        )
    if lookup(json, "zero_optimization.stage") == 3 and train.compile == "layers":
        problems.add(
            "train.compile=layers does not go with ZeRO-3: weights are gathered inside the layers.",
            got=f"train.compile=layers, {recipe}",
            fix=f"train.compile=elementwise, or {zero2}",
        )
    if lookup(json, "zero_optimization.stage") == 3 and train.ema_decay:
        problems.add(
            "The moving average of the weights needs whole weights on every rank, and ZeRO-3 has none.",
            got=f"train.ema_decay={train.ema_decay:g} with {recipe}",
            fix="--deepspeed zero2, or train.ema_decay=0",
        )
    problems.raise_if_any()
