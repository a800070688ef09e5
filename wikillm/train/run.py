"""The training run as a whole.

The order follows from dependencies: the plan needs the tokens, the DeepSpeed configuration needs
the plan, TrainingArguments (which create the process group) need the DeepSpeed configuration, and
the model needs TrainingArguments. Checks that need no process group run before it exists.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, TrainingArguments

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.checkpoints.retention import keep_of
from wikillm.config.resolved import Resolved, to_yaml
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import StoppedError
from wikillm.core.log import log_to_file
from wikillm.core.world import World
from wikillm.data.read.corpus import Corpus
from wikillm.data.read.open import open_corpus
from wikillm.evals.questions import read_tasks
from wikillm.export.check_before_training import predict_export
from wikillm.models.apply import apply_patches
from wikillm.models.build import build_model
from wikillm.observe.peak_memory import PeakMemory
from wikillm.observe.redact import without_queries
from wikillm.plan.run_plan import Plan, make_plan
from wikillm.supervise.node_versions import versions_of_this_node
from wikillm.supervise.requests import FileRequests, watched_requests
from wikillm.supervise.settings import run_folder, settings_of
from wikillm.supervise.signals import StopSignals, installed
from wikillm.supervise.supervisor import Supervisor, supervise
from wikillm.train.arguments import follow_plan, to_training_arguments
from wikillm.train.collectives import ControlGroup
from wikillm.train.context import PlannedRun, RunContext
from wikillm.train.engine import (
    check_engine,
    gpu_of_rank,
    resolve_engine,
    start_engine,
    with_precision_of,
)
from wikillm.train.exit import Ending, ending, record_exit
from wikillm.train.resume import Replay, ResumeOptions, ResumePoint, agree_on_resume_point
from wikillm.train.rewind import Rewind, collect
from wikillm.train.run_dir import RunDir, refuse_before_supervision
from wikillm.train.start_checks import check_shared_folder, check_world, limit_threads
from wikillm.train.start_summary import log_new_horizon, log_start_summary
from wikillm.train.training import train
from wikillm.train.wait_for_data import open_run_corpus


def pretrain(
    resolved: Resolved,
    *,
    resume: str = "never",
    allow_change: bool = False,
    trust_checkpoint: bool = False,
    replay: Replay | None = None,
    signals: StopSignals | None = None,
    supervisor: Supervisor | None = None,
) -> None:
    """Train until the horizon or a stop request. (all ranks)

    Args:
        resume: "never", "auto" or the path of a checkpoint.
        allow_change: accept another horizon or batch than the checkpoint's.
        trust_checkpoint: allow the code in a checkpoint's pickles to run.
        replay: the steps to compute again; training ends after the last of them.
        signals, supervisor: objects that the caller has started; None starts new ones.

    Raises:
        WikiLLMError: the run was refused or failed; RUN/exit.json has the same `exit_code`.
    """
    options = ResumeOptions(resume, allow_change, trust_checkpoint, replay)
    world = World.from_env()
    with ExitStack() as stack:
        if signals is None:
            signals = stack.enter_context(installed())
        # Run the checks that need neither the data nor the other ranks.
        cfg = resolved.config
        settings = settings_of(cfg.train, cfg.run, cfg.alerts)
        refuse_before_supervision(settings.run, cfg.data.store, world)
        read_tasks(cfg.train.eval_tasks)
        limit_threads(world, os.cpu_count() or 1)
        train_section = with_precision_of(resume, settings.run / "checkpoints", cfg.train)
        resolved = replace(resolved, config=cfg.model_copy(update={"train": train_section}))
        check_engine(resolved, world)
        # Start the supervision, and watch for the files RUN/stop and RUN/save.
        if supervisor is None:
            watching = supervise(world, settings, lambda: versions_of_this_node(to_yaml(resolved)))
            supervisor = stack.enter_context(watching)
            stack.enter_context(signals.as_error())
        watching_files = watched_requests(settings.run, signals.request, is_main=world.is_main)
        requests = stack.enter_context(watching_files)
        _pretrain(resolved, world, signals, requests, supervisor, options)


def dry_run(resolved: Resolved) -> None:
    """Run the checks that need no process group, and log the start summary.

    Prepares the token store; writes no run directory.
    """
    world = World.from_env()
    check_engine(resolved, world)
    corpus = open_corpus(resolved.config.data, is_main=world.is_main)
    log_start_summary(_plan_run(resolved, world, corpus))


def _pretrain(
    resolved: Resolved,
    world: World,
    signals: StopSignals,
    requests: FileRequests,
    supervisor: Supervisor,
    options: ResumeOptions,
) -> None:
    """Start the run, then train; after a Rewind, train again. (all ranks)"""
    cfg = resolved.config
    heartbeat = supervisor.heartbeat

    # Open the data, and run the checks on plan and engine, which need no process group.
    heartbeat.enter("store")
    corpus = open_run_corpus(cfg.data, world, in_epochs=cfg.train.num_train_epochs is not None)
    planned = _plan_run(resolved, world, corpus)
    run = planned.run

    heartbeat.enter("engine")
    closing = ending(run.path, world, cfg.train.exit_timeout_seconds, corpus.close)
    with closing as end, supervisor.explains(), signals.as_error():
        # Rank 0 locks the run directory; from here on an early exit is recorded in it.
        if world.is_main:
            end.lock = run.claim(resume=options.resume != "never")
            requests.remove_old()
            _open_run(planned)
            supervisor.at(run.path, run.log_file(0))
        signals.before_exit = partial(_leave_early, run.path, world.rank, supervisor)

        # Create the process group, then agree on the ranks and the folder.
        start_engine(world, planned.engine)
        args = to_training_arguments(planned)
        end.group = group = ControlGroup()
        log_to_file(run.log_file(world.rank), clean=without_queries)
        check_world(args, world, group, planned.engine.precision)
        identity = check_shared_folder(run, world, group)
        supervisor.at(run.path, run.log_file(world.rank))
        context = RunContext(
            resolved,
            world,
            run,
            corpus,
            planned.plan,
            planned.engine,
            identity=identity,
            group=group,
            signals=signals,
            requests=requests,
            heartbeat=heartbeat,
            peak=PeakMemory(uses_gpu=args.device.type == "cuda"),
            point=None,
        )
        while (rewind := _train_from(context, args, options, end)) is not None:
            options = replace(options, resume=rewind)
            collect()
            heartbeat.restart()


def _train_from(
    start: RunContext, args: TrainingArguments, options: ResumeOptions, end: Ending
) -> str | None:
    """Train from the checkpoint that `options.resume` names. (all ranks)

    Returns None at the end of the run. After a Rewind returns the next `resume`, and nothing refers
    to the model any more.
    """
    cfg = start.resolved.config
    start.heartbeat.enter("model")
    point = agree_on_resume_point(start.run.checkpoints, options.resume, start.group, start.world)
    plan = _plan_from(point, start, args)

    # Build the model, under the DeepSpeed configuration that `args` keeps alive.
    eos_id = start.corpus.manifest.tokenizer.eos_id
    model = build_model(cfg.model, plan.vocab_size, args, eos_id=eos_id, seed=cfg.run.seed)
    _patch(model, args, cfg.train, plan)
    try:
        train(replace(start, plan=plan, point=point), model, args, options, end)
    except Rewind as rewind:
        return rewind.resume
    return None


def _plan_run(resolved: Resolved, world: World, corpus: Corpus) -> PlannedRun:
    """Plan the run on an open corpus. Raises ConfigError if it cannot be planned. (all ranks)"""
    cfg = resolved.config
    if world.is_main:
        predict_export(corpus.tokenizer_dir, cfg.model.architecture, cfg.model.init_from)
    plan = _plan_on(corpus, resolved, world)
    run = RunDir(run_folder(cfg.run))
    return PlannedRun(resolved, world, run, corpus, plan, resolve_engine(cfg, plan, world))


def _plan_on(
    corpus: Corpus, resolved: Resolved, world: World, done: tuple[int, int] | None = None
) -> Plan:
    """Make the plan. `done` is the number of steps and of samples that a checkpoint has trained."""
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


def _open_run(planned: PlannedRun) -> None:
    """Identify the run in its claimed directory and log the start summary. (rank 0)

    A directory without checkpoints gets its start records here; with checkpoints they are written
    after the resume is accepted. Raises MachineError if no checkpoint fits on the disk.
    """
    run = planned.run
    run.check_room(planned.checkpoint_bytes, keep_of(planned.resolved.config.train))
    run.identify()
    if not list_checkpoints(run.checkpoints):
        planned.write_start_records()
    log_start_summary(planned)


def _leave_early(run: Path, rank: int, supervisor: Supervisor, error: StoppedError) -> None:
    """Record a stop that came before the end of the first step, and tell the other ranks."""
    record_exit(run, error, rank=rank, step=None)
    supervisor.leave(error)


def _patch(
    model: PreTrainedModel, args: TrainingArguments, train: TrainSection, plan: Plan
) -> None:
    length = plan.sequence_length // plan.sequence_parallel_size
    apply_patches(
        model,
        train,
        rows=plan.micro_batch_tokens,
        shapes={(plan.micro_batch, length), (args.per_device_eval_batch_size, length)},
        device_type=args.device.type,
    )


def _plan_from(point: ResumePoint | None, planned: PlannedRun, args: TrainingArguments) -> Plan:
    """The plan; after a resume, made again from the checkpoint's step and samples."""
    if point is None:
        return planned.plan
    done = (point.step, point.trained_samples)
    plan = _plan_on(planned.corpus, planned.resolved, planned.world, done)
    if plan != planned.plan:
        follow_plan(args, planned.resolved.config.train, plan)
        log_new_horizon(plan)
    return plan
