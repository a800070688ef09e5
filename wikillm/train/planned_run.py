"""Plans a run before its process group exists; `--dry-run` stops after it."""

from __future__ import annotations

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.checkpoints.retention import keep_of
from wikillm.config.load import Resolved
from wikillm.core.world import World
from wikillm.data.read.corpus import Corpus
from wikillm.data.read.open import open_corpus
from wikillm.export.predict import predict_export
from wikillm.plan.run_plan import Plan, make_plan
from wikillm.supervise.settings import run_folder
from wikillm.train.context import PlannedRun
from wikillm.train.engine import check_engine, gpu_of_rank, resolve_engine
from wikillm.train.run_dir import RunDir
from wikillm.train.start_records import write_start_records
from wikillm.train.start_summary import log_start_summary


def plan_run(resolved: Resolved, world: World, corpus: Corpus) -> PlannedRun:
    """Plan the run on an open corpus. Raises ConfigError if the run cannot be planned. (all
    ranks)"""
    cfg = resolved.config
    if world.is_main:
        predict_export(corpus.tokenizer_dir, cfg.model.architecture, cfg.model.init_from)
    plan = plan_on(corpus, resolved, world)
    run = RunDir(run_folder(cfg.run))
    return PlannedRun(resolved, world, run, corpus, plan, resolve_engine(cfg, plan, world))


def plan_on(
    corpus: Corpus, resolved: Resolved, world: World, done: tuple[int, int] | None = None
) -> Plan:
    """The plan; `done` are the steps and samples that a checkpoint was trained on."""
    train = resolved.config.train
    return make_plan(
        resolved,
        world_size=world.size,
        tokenizer_length=corpus.manifest.tokenizer.length,
        train_tokens=corpus.train_tokens,
        epoch=corpus.epoch_sizes(train.sequence_length),
        gpu=gpu_of_rank(train, world),
        done=done,
    )


def open_run(planned: PlannedRun) -> None:
    """Identify the run in its claimed directory and log the start summary. (rank 0)

    A directory without checkpoints gets its records here; otherwise they are written when the
    checkpoint has been accepted. Raises MachineError if not even one checkpoint fits on the disk.
    """
    run = planned.run
    run.check_room(planned.checkpoint_bytes, keep_of(planned.resolved.config.train))
    run.identify()
    if not list_checkpoints(run.checkpoints):
        write_start_records(planned)
    log_start_summary(planned)


def dry_run(resolved: Resolved) -> None:
    """Check all that can be checked before a process group exists, and log the start summary.

    Prepares the token store; writes no run directory.
    """
    world = World.from_env()
    check_engine(resolved, world)
    corpus = open_corpus(resolved.config.data, is_main=world.is_main)
    log_start_summary(plan_run(resolved, world, corpus))
