"""Builds the trainer with its data and callbacks, and trains to the horizon."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from fractions import Fraction

from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from wikillm.checkpoints.layout import checkpoint_name
from wikillm.core.errors import StoppedError
from wikillm.core.log import say
from wikillm.models.unpickle import only_known_classes
from wikillm.models.z_loss import ZLoss
from wikillm.train.callbacks.checkpoint import CheckpointCallback
from wikillm.train.callbacks.ema import EmaCallback
from wikillm.train.callbacks.garbage import GarbageCallback
from wikillm.train.callbacks.progress import ProgressCallback
from wikillm.train.callbacks.report import ReportCallback
from wikillm.train.callbacks.samples import SampleCallback
from wikillm.train.callbacks.stop import StopCallback
from wikillm.train.callbacks.time_limit import TimeLimitCallback
from wikillm.train.checkpoint_errors import check_training_state
from wikillm.train.checkpoint_state import checkpoint_state, run_facts
from wikillm.train.context import RunContext
from wikillm.train.engine import bytes_per_checkpoint
from wikillm.train.exit import Ending
from wikillm.train.plan_vs_measured import record_outcome
from wikillm.train.result import TrainResult
from wikillm.train.resume import (
    ResumeOptions,
    ResumePoint,
    check_same_run,
    check_same_tokens,
    log_abandoned,
    log_changes,
)
from wikillm.train.resume_keys import recorded_settings
from wikillm.train.run_data import RunData, open_run_data
from wikillm.train.start_records import write_data_record, write_start_records
from wikillm.train.trainer import WikiTrainer


def train(
    context: RunContext,
    model: PreTrainedModel,
    args: TrainingArguments,
    z_loss: ZLoss | None,
    point: ResumePoint | None,
    options: ResumeOptions,
    end: Ending,
) -> TrainResult:
    """Train to the horizon. (all ranks)

    Raises StoppedError after a complete checkpoint when a signal or the time limit asked for it.
    """
    start = time.monotonic()
    # A checkpoint is checked against this run before anything of it is used.
    data = open_run_data(context) if point is None else _resume_data(context, point, options)
    section = context.resolved.config.train
    trainer = WikiTrainer(
        model,
        args,
        data,
        context.group,
        context.signals,
        context.heartbeat,
        first_step=point.step if point else 0,
        consumed_samples=point.consumed_samples if point else 0,
        z_loss=z_loss,
        muon=section if section.optimizer == "muon" else None,
    )
    report = ReportCallback(context, trainer, point)
    stop = StopCallback(trainer, context.run, section.max_skipped_steps)
    garbage = GarbageCallback()
    _add_callbacks(context, trainer, point, report, stop, garbage)
    end.step = lambda: int(trainer.state.global_step)
    context.heartbeat.enter("setup")
    context.signals.install()  # again: the tracker has installed handlers of its own

    folder = point.checkpoint if point else context.run.path
    error: BaseException | None = None
    try:
        with only_known_classes(folder, trust=options.trust_checkpoint):
            trainer.train(resume_from_checkpoint=str(folder) if point else None)
        if stop.stopped_by is not None:
            checkpoint = context.run.checkpoints / checkpoint_name(trainer.state.global_step)
            raise StoppedError(
                f"Stopped by {stop.stopped_by} at step {trainer.state.global_step}; a complete "
                f"checkpoint is at {checkpoint}.",
                fix="resume with the same command and --resume auto",
            )
    except BaseException as caught:
        error = caught
        raise
    finally:
        garbage.close()
        context.heartbeat.enter("close")
        report.close(error)
        if context.world.is_main:
            with suppress(OSError):
                write_data_record(context.run, context.corpus)  # again: the store may have grown
    record_outcome(context, report.mean_tokens_per_second)
    return _result(context, trainer, report, time.monotonic() - start)


def _resume_data(context: RunContext, point: ResumePoint, options: ResumeOptions) -> RunData:
    """The data of a resumed run, once configuration, files and tokens match the checkpoint."""
    facts = run_facts(context)
    settings = recorded_settings(context.resolved.config)
    world = context.world
    check_same_run(
        point,
        facts,
        allow_change=options.allow_change,
        model=context.resolved.config.model,
        settings=settings,
    )
    check_training_state(
        point.checkpoint,
        rank=world.rank,
        world_size=world.size,
        is_deepspeed=context.engine.json is not None,
    )
    say(f"resuming   {point.checkpoint} (step {point.step:,})")
    if point.step >= context.plan.max_steps:
        say(f"           nothing is left to train: the horizon is step {context.plan.max_steps:,}")
    else:
        log_abandoned(point, context.run.checkpoints)
        log_changes(point, facts, settings)
    data = open_run_data(context)
    data.wait_for(point.consumed_samples)
    check_same_tokens(point, context.corpus.data_read(data.order, point.consumed_samples))
    # Only now: a start that is refused leaves the records of the run as they are.
    if world.is_main:
        write_start_records(
            context.run, context.resolved, context.plan, context.engine, context.corpus
        )
    return data


def _add_callbacks(
    context: RunContext,
    trainer: WikiTrainer,
    point: ResumePoint | None,
    report: ReportCallback,
    stop: StopCallback,
    garbage: GarbageCallback,
) -> None:
    """Add the callbacks in the order in which they act on a step."""
    cfg = context.resolved.config
    plan = context.plan
    run = context.run
    train = cfg.train
    limit = TimeLimitCallback(
        train.max_hours,
        bytes_per_checkpoint(cfg.model, train, plan, context.engine),
        float(point.state.get("save_seconds", 0.0)) if point else 0.0,
        sequences=plan.batch_ramp.sequences_at,
    )
    context.signals.limit = limit.reason
    saving = CheckpointCallback(
        run,
        context.world,
        context.group,
        train.save_total_limit,
        lambda step: checkpoint_state(
            context,
            trainer.data.order,
            step=step,
            consumed_samples=trainer.consumed_samples,
            train_seconds=report.meter.train_seconds,
            save_seconds=limit.save_seconds,
            held_out=trainer.held_out,
        ),
        point.origin if point else None,
    )
    average: list[TrainerCallback] = []
    if train.ema_decay:
        first = math.ceil(Fraction(str(train.ema_start)) * plan.max_steps)
        checkpoint = point.checkpoint if point else None
        average = [EmaCallback(train.ema_decay, first, context.world, run.staging, checkpoint)]
    samples = SampleCallback(
        trainer,
        report,
        cfg.observe,
        context.corpus.tokenizer_dir,
        context.corpus.manifest.tokenizer.eos_id,
        context.world,
        is_partitioned=context.engine.zero_stage == 3,
    )
    progress = ProgressCallback(context.heartbeat)
    for callback in (limit, stop, *average, saving, report, samples, garbage, progress):
        trainer.add_callback(callback)


def _result(
    context: RunContext, trainer: WikiTrainer, report: ReportCallback, seconds: float
) -> TrainResult:
    return TrainResult(
        run_dir=context.run.path,
        plan=context.plan,
        steps=int(trainer.state.global_step),
        first_loss=report.first_loss,
        last_loss=report.last_loss,
        held_out=trainer.held_out,
        held_out_of=trainer.held_out_of,
        tokens_per_second=report.mean_tokens_per_second,
        sources=report.sources_used(),
        seconds=seconds,
        data_wait=report.mean_data_wait,
    )
