"""What a run writes down before step 1, so that it can be understood and repeated from its directory alone.

A resumed start writes its records once the checkpoint has accepted its configuration: a refused one changes nothing.
"""

from __future__ import annotations

import shutil

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.config.load import Resolved, to_yaml
from wikillm.core.files import write_atomic, write_json
from wikillm.core.log import say
from wikillm.core.units import format_count
from wikillm.data.order.blocks import SourceUse
from wikillm.data.read.corpus import Corpus
from wikillm.observe.redact import without_queries
from wikillm.plan.batch import name_ranks
from wikillm.plan.run_plan import Plan
from wikillm.train.engine import Engine, bytes_per_checkpoint
from wikillm.train.run_dir import RunDir, describe_environment


def open_run(run: RunDir, resolved: Resolved, plan: Plan, engine: Engine, corpus: Corpus) -> None:
    """Identify the run in the claimed directory and tell the user what will run. (rank 0)

    A directory without checkpoints gets its records here; otherwise `record_start` follows when one was accepted.

    Raises MachineError where not one checkpoint fits on the disk.
    """
    run.check_room(
        bytes_per_checkpoint(resolved.config, plan, engine), resolved.config.train.save_total_limit
    )
    run.identify()
    if not list_checkpoints(run.checkpoints):
        record_start(run, resolved, plan, engine, corpus)
    say_plan(run, resolved, plan, engine, corpus)


def record_start(
    run: RunDir, resolved: Resolved, plan: Plan, engine: Engine, corpus: Corpus
) -> None:
    """Write the configuration, the plan, the environment and the data of this start. (rank 0)"""
    write_atomic(run.path / "config.resolved.yaml", without_queries(to_yaml(resolved)))
    write_json(run.path / "plan.json", plan.to_json())
    write_json(run.path / "environment.json", describe_environment())
    if engine.json is not None:
        write_json(run.path / "ds_config.resolved.json", engine.json)
    record_data(run, corpus)


def record_data(run: RunDir, corpus: Corpus) -> None:
    """What the run is trained on, and the tokenizer itself: a run can be exported when its store is gone."""
    write_json(run.path / "data.json", corpus.describe())
    shutil.copytree(corpus.tokenizer_dir, run.path / "tokenizer", dirs_exist_ok=True)


def say_plan(run: RunDir, resolved: Resolved, plan: Plan, engine: Engine, corpus: Corpus) -> None:
    """The plan in a few lines: model, engine, batch, horizon, and every decision that was made for the user."""
    cfg = resolved.config
    say(f"run        {run.path}")
    say(
        f"model      {cfg.model.preset}: {format_count(plan.parameters)} parameters "
        f"({plan.parameters:,}), vocabulary {plan.vocab_size:,}"
    )
    ranks = "1 process" if plan.world_size == 1 else f"{plan.world_size} processes"
    say(f"engine     {engine.name}, {ranks}, {engine.precision}")
    chosen = " (auto)" if cfg.train.per_device_train_batch_size == "auto" else ""
    say(
        f"batch      {plan.global_batch_tokens:,} tokens = {plan.micro_batch} sequences{chosen} x {plan.accumulation} "
        f"accumulation x {name_ranks(plan.sequence_groups, plan.sequence_parallel_size)} x {plan.sequence_length} tokens"
    )
    if plan.batch_ramp.stages:
        first, ramp = plan.batch_ramp.sequences_at(0) * plan.sequence_length, plan.batch_ramp
        say(
            f"           from {first:,} tokens, full after {ramp.steps:,} steps ({ramp.describe()})"
        )
    say(_horizon(plan))
    order = corpus.order(plan.sequence_length, cfg.run.seed)
    for use in order.used(plan.batch_ramp.sequences_before(plan.max_steps)):
        say(f"source     {source_line(use)}")
    for note in (*plan.notes, *engine.notes):
        say(f"note       {note}")


def _horizon(plan: Plan) -> str:
    epochs = (
        "the corpus is still being counted" if plan.epochs is None else f"{plan.epochs:.2f} epochs"
    )
    return (
        f"horizon    {plan.max_steps:,} steps = {format_count(plan.total_tokens)} tokens = {epochs}, "
        f"warm-up {plan.warmup_steps:,} steps"
    )


def say_new_plan(plan: Plan) -> None:
    """Log a plan that a checkpoint has changed: its samples were trained on with another batch."""
    say(f"{_horizon(plan)}, from the checkpoint on")


def source_line(use: SourceUse) -> str:
    """`wiki: 75.00% of the samples, 12.3M tokens, 1.20 epochs`."""
    return f"{use.name}: {use.share:.2%} of the samples, {format_count(use.tokens)} tokens, {use.epochs:.2f} epochs"
