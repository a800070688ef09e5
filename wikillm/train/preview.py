"""What a run would do, without doing it: `wikillm train --dry-run`, and the summary of a finished one."""

from __future__ import annotations

from pathlib import Path

from wikillm.config.load import Resolved
from wikillm.core.log import say
from wikillm.core.units import format_count, format_seconds
from wikillm.core.world import World
from wikillm.data.read.open import open_corpus
from wikillm.evals.loss import weights_of
from wikillm.export.foresee import foresee_export
from wikillm.plan.run_plan import make_plan
from wikillm.train.engine import check_before_data, check_engine, gpu_of_rank, resolve_engine
from wikillm.train.job import TrainResult
from wikillm.train.records import say_plan, source_line
from wikillm.train.run_dir import RunDir


def preview(resolved: Resolved) -> None:
    """Check everything that can be checked before a process group exists, and show the plan. Writes no run directory."""
    cfg, world = resolved.config, World.from_env()
    check_engine(cfg)
    check_before_data(resolved, world)
    corpus = open_corpus(cfg.data, is_main=world.is_main)
    if world.is_main:
        foresee_export(corpus.tokenizer_dir, cfg.model.architecture, cfg.model.init_from)
    plan = make_plan(
        resolved,
        world_size=world.size,
        tokenizer_length=corpus.manifest.tokenizer.length,
        train_tokens=corpus.train_tokens,
        epoch=corpus.epoch_sizes(cfg.train.sequence_length),
        gpu=gpu_of_rank(cfg, world),
    )
    engine = resolve_engine(cfg, plan, world)
    say_plan(RunDir(Path(cfg.run.dir or f"runs/{cfg.run.name}")), resolved, plan, engine, corpus)


def say_result(result: TrainResult) -> None:
    """The end of a run in a few lines, and what to type next. (rank 0 prints)"""
    say(f"done       {result.steps:,} steps in {format_seconds(result.seconds)}")
    if result.first_loss is not None and result.last_loss is not None:
        say(f"loss       {result.first_loss:.4f} -> {result.last_loss:.4f} nats/token")
    for use in result.sources:
        say(f"source     {source_line(use)}")
    if result.held_out is not None:
        say(
            f"held out   {result.held_out.loss:.4f} nats/token, {result.held_out.bits_per_byte:.4f} bits/byte"
        )
        if result.held_out_of:
            say(f"           {weights_of(result.held_out_of)}")
    if result.tokens_per_second is not None:
        waited = (
            ""
            if result.data_wait is None
            else f", {result.data_wait:.1%} of the time spent waiting for data"
        )
        say(f"speed      {format_count(result.tokens_per_second)} tokens/s{waited}")
    say(
        f"next       wikillm generate {result.run_dir} --prompt ...   or   wikillm export {result.run_dir}"
    )
