"""What is known of a run before its process group exists: data, plan and engine.

`--dry-run` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.config.load import Resolved
from wikillm.core.world import World
from wikillm.data.read.corpus import Corpus
from wikillm.data.read.open import open_corpus
from wikillm.export.foresee import foresee_export
from wikillm.plan.run_plan import Plan, make_plan
from wikillm.train.engine import (
    Engine,
    bytes_per_checkpoint,
    check_engine,
    gpu_of_rank,
    resolve_engine,
)
from wikillm.train.run_dir import RunDir
from wikillm.train.start_records import write_start_records
from wikillm.train.start_summary import log_start_summary


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """`replan(done=(steps, samples))` makes the plan of a run that goes on from a checkpoint."""

    corpus: Corpus
    plan: Plan
    engine: Engine
    replan: Callable[..., Plan]


def plan_run(resolved: Resolved, world: World, corpus: Corpus) -> PlannedRun:
    """Plan the run on an open corpus. Raises ConfigError for what does not fit. (all ranks)"""
    cfg = resolved.config
    if world.is_main:
        foresee_export(corpus.tokenizer_dir, cfg.model.architecture, cfg.model.init_from)
    replan = partial(
        make_plan,
        resolved,
        world_size=world.size,
        tokenizer_length=corpus.manifest.tokenizer.length,
        train_tokens=corpus.train_tokens,
        epoch=corpus.epoch_sizes(cfg.train.sequence_length),
        gpu=gpu_of_rank(cfg.train, world),
    )
    plan = replan()
    return PlannedRun(corpus, plan, resolve_engine(cfg, plan, world), replan)


def open_run(run: RunDir, resolved: Resolved, planned: PlannedRun) -> None:
    """Identify the run in its claimed directory and log the start summary. (rank 0)

    A directory without checkpoints gets its records here; otherwise they follow when the checkpoint
    has been accepted. Raises MachineError where not one checkpoint fits on the disk.
    """
    cfg = resolved.config
    plan = planned.plan
    engine = planned.engine
    size = bytes_per_checkpoint(cfg.model, cfg.train, plan, engine)
    run.check_room(size, cfg.train.save_total_limit)
    run.identify()
    if not list_checkpoints(run.checkpoints):
        write_start_records(run, resolved, plan, engine, planned.corpus)
    log_start_summary(run, resolved, plan, engine, planned.corpus)


def dry_run(resolved: Resolved) -> None:
    """Check all that can be checked before a process group exists, and log the start summary.

    Prepares the token store; writes no run directory.
    """
    cfg = resolved.config
    world = World.from_env()
    check_engine(resolved, world)
    planned = plan_run(resolved, world, open_corpus(cfg.data, is_main=world.is_main))
    run = RunDir(Path(cfg.run.dir or f"runs/{cfg.run.name}"))
    log_start_summary(run, resolved, planned.plan, planned.engine, planned.corpus)
