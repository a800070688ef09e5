"""The training run, as a story.

Order is expressed by what each step needs: tokens before the plan, the plan before the engine's configuration,
that before the arguments (which create the process group and HF's DeepSpeed config), those before the model.
Everything that can be refused is refused before the process group exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import TrainingArguments

from wikillm.config.load import Resolved, to_yaml
from wikillm.config.schema import RunConfig
from wikillm.core.log import log_to_file
from wikillm.core.world import World
from wikillm.export.foresee import foresee_export
from wikillm.models.apply import apply_patches
from wikillm.models.build import build_model
from wikillm.observe.peak import PeakMemory
from wikillm.observe.redact import without_queries
from wikillm.plan.run_plan import Plan, make_plan
from wikillm.supervise.facts import facts_of_this_node
from wikillm.supervise.signals import StopSignals, installed
from wikillm.supervise.supervisor import Supervisor, settings_of, supervise
from wikillm.train.arguments import follow_plan, to_training_arguments
from wikillm.train.collectives import ControlGroup
from wikillm.train.engine import (
    check_before_data,
    check_engine,
    gpu_of_rank,
    resolve_engine,
    start_engine,
)
from wikillm.train.exit import ending, record_exit
from wikillm.train.job import Job, TrainResult
from wikillm.train.records import open_run, say_new_plan
from wikillm.train.resume import ResumePoint, agree_on_resume_point
from wikillm.train.run_dir import RunDir, refuse_before_supervision
from wikillm.train.start_checks import check_shared_folder, check_world, limit_threads
from wikillm.train.wait_for_data import open_run_corpus


@dataclass(frozen=True, slots=True)
class _Resuming:
    """The words of the command line that say how a run goes on."""

    resume: str
    allow_change: bool
    trust_checkpoint: bool


def pretrain(
    resolved: Resolved,
    *,
    resume: str = "never",
    allow_change: bool = False,
    signals: StopSignals | None = None,
    supervisor: Supervisor | None = None,
    trust_checkpoint: bool = False,
) -> TrainResult:
    """Train until the horizon or a stop request. (all ranks)

    Args:
        resolved: the configuration, with the origin of every value.
        resume: "never", "auto" or the path of a checkpoint.
        allow_change: accept another horizon or batch than the checkpoint's.
        signals: where the caller has installed them already.
        supervisor: where the caller has started it already.
        trust_checkpoint: run the code that a checkpoint's pickles may hold.

    Raises:
        WikiLLMError: refused or failed; `exit_code` says which way. RUN/exit.json has the same.
    """
    if signals is None:
        with installed() as own:
            return pretrain(
                resolved,
                resume=resume,
                allow_change=allow_change,
                signals=own,
                supervisor=supervisor,
                trust_checkpoint=trust_checkpoint,
            )
    cfg, world = resolved.config, World.from_env()
    refuse_before_supervision(resolved, world)
    limit_threads(world, os.cpu_count() or 1)
    check_engine(cfg)
    check_before_data(resolved, world)
    how = _Resuming(resume, allow_change, trust_checkpoint)
    if supervisor is not None:
        return _pretrain(resolved, world, signals, supervisor, how)
    facts = lambda: facts_of_this_node(to_yaml(resolved))  # noqa: E731
    with (
        supervise(
            world, settings_of(resolved.config.train, resolved.config.run), facts
        ) as own_supervisor,
        signals.as_error(),
    ):
        return _pretrain(resolved, world, signals, own_supervisor, how)


def _pretrain(
    resolved: Resolved, world: World, signals: StopSignals, supervisor: Supervisor, how: _Resuming
) -> TrainResult:
    cfg, heartbeat = resolved.config, supervisor.heartbeat
    heartbeat.enter("store")
    corpus = open_run_corpus(cfg, world)
    if world.is_main:
        foresee_export(corpus.tokenizer_dir, cfg.model.architecture, cfg.model.init_from)
    make = partial(
        make_plan,
        resolved,
        world_size=world.size,
        tokenizer_length=corpus.manifest.tokenizer.length,
        train_tokens=corpus.train_tokens,
        epoch=corpus.epoch_sizes(cfg.train.sequence_length),
        gpu=gpu_of_rank(cfg, world),
    )
    plan = make()
    engine = resolve_engine(cfg, plan, world)
    run = RunDir(settings_of(resolved.config.train, resolved.config.run).run)
    heartbeat.enter("engine")
    closing = ending(run.path, world, cfg.train.exit_timeout_seconds, corpus.close)
    with closing as end, supervisor.explains(), signals.as_error():
        if world.is_main:
            end.lock = run.claim(resume=how.resume != "never")
            open_run(run, resolved, plan, engine, corpus)
            supervisor.at(run.path, run.log_file(0))
        signals.before_exit = lambda error: record_exit(run.path, error, rank=world.rank, step=None)
        start_engine(world, engine)
        args = to_training_arguments(cfg, plan, run.staging, engine.precision, engine.json)
        end.group = group = ControlGroup()
        log_to_file(run.log_file(world.rank), clean=without_queries)
        check_world(args, world, group, plan.micro_batch)
        identity = check_shared_folder(run, group)
        supervisor.at(run.path, run.log_file(world.rank))
        point = agree_on_resume_point(run.checkpoints, how.resume, group, is_main=world.is_main)
        if point is not None:
            plan = go_on_from(point, plan, make, args, cfg)
        peak = PeakMemory(uses_gpu=args.device.type == "cuda")
        heartbeat.enter("model")
        model = build_model(
            cfg.model,
            plan.vocab_size,
            args,
            eos_id=corpus.manifest.tokenizer.eos_id,
            seed=cfg.run.seed,
        )
        length = plan.sequence_length // plan.sequence_parallel_size
        z_loss = apply_patches(
            model,
            cfg.train,
            rows=plan.micro_batch_tokens,
            shapes={(plan.micro_batch, length), (args.per_device_eval_batch_size, length)},
            device_type=args.device.type,
        )
        job = Job(
            resolved,
            plan,
            engine,
            corpus,
            world,
            run,
            identity,
            group,
            signals,
            peak,
            heartbeat,
            z_loss,
        )
        end.step = lambda: job.step
        return job.train(
            model, args, point, allow_change=how.allow_change, trust_checkpoint=how.trust_checkpoint
        )


def go_on_from(
    point: ResumePoint,
    plan: Plan,
    make: Callable[..., Plan],
    args: TrainingArguments,
    cfg: RunConfig,
) -> Plan:
    """The plan with what the checkpoint has trained on counted as it was, also with another batch. (all ranks)"""
    onwards = make(done=(point.step, point.consumed_samples))
    if onwards != plan:
        follow_plan(args, cfg, onwards)
        say_new_plan(onwards)
    return onwards
