"""Logs the summary at the start of a run: model, engine, batch, horizon, adjusted settings."""

from __future__ import annotations

import torch

from wikillm.config.schema_train import TrainSection
from wikillm.core.log import say
from wikillm.core.units import format_count
from wikillm.data.order.blocks import SourceUse
from wikillm.measure.device import bf16_gain
from wikillm.plan.batch import name_ranks
from wikillm.plan.run_plan import Plan
from wikillm.train.context import PlannedRun
from wikillm.train.engine import Engine


def _why_bf16(train: TrainSection, engine: Engine) -> str:
    """Why a CPU trains in bf16 under precision=auto, as text for the log; "" in other cases."""
    if train.precision != "auto" or engine.precision != "bf16" or torch.cuda.is_available():
        return ""
    return f" ({bf16_gain():.1f} times float32's products here; train.precision=fp32 overrides)"


def log_start_summary(planned: PlannedRun) -> None:
    """Log the plan in a few lines. (rank 0)"""
    cfg = planned.resolved.config
    plan = planned.plan
    engine = planned.engine
    say(f"run        {planned.run.path}")
    say(
        f"model      {cfg.model.label}: {format_count(plan.parameters)} parameters "
        f"({plan.parameters:,}), vocabulary {plan.vocab_size:,}"
    )
    ranks = "1 process" if plan.world_size == 1 else f"{plan.world_size} processes"
    say(f"engine     {engine.name}, {ranks}, {engine.precision}{_why_bf16(cfg.train, engine)}")
    chosen = " (auto)" if cfg.train.per_device_train_batch_size == "auto" else ""
    say(
        f"batch      {plan.global_batch_tokens:,} tokens = {plan.micro_batch} sequences{chosen}"
        f" x {plan.accumulation} accumulation"
        f" x {name_ranks(plan.sequence_groups, plan.sequence_parallel_size)}"
        f" x {plan.sequence_length} tokens"
    )
    say(_horizon(plan))
    # For a mixture, the share of each source until the horizon.
    order = planned.corpus.order(plan.sequence_length, cfg.run.seed)
    for use in order.sources_used(plan.total_tokens // plan.sequence_length):
        say(f"source     {source_line(use)}")
    for note in (*plan.notes, *engine.notes):
        say(f"note       {note}")


def log_new_horizon(plan: Plan) -> None:
    """Log the horizon that has changed, as the checkpoint was trained with another batch size."""
    say(f"{_horizon(plan)}, from the checkpoint on")


def _horizon(plan: Plan) -> str:
    tokens = format_count(plan.total_tokens)
    unknown = "the corpus is still being counted"
    epochs = unknown if plan.epochs is None else f"{plan.epochs:.2f} epochs"
    return (
        f"horizon    {plan.max_steps:,} steps = {tokens} tokens = {epochs}, "
        f"warm-up {plan.warmup_steps:,} steps"
    )


def source_line(use: SourceUse) -> str:
    """`wiki: 75.00% of the samples, 12.3M tokens, 1.20 epochs`."""
    tokens = format_count(use.tokens)
    return f"{use.name}: {use.share:.2%} of the samples, {tokens} tokens, {use.epochs:.2f} epochs"
