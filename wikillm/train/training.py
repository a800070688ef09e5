"""Builds the trainer with its data and callbacks, and trains to the horizon."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from wikillm.checkpoints.layout import checkpoint_name
from wikillm.checkpoints.lineage import next_ancestry, record_return
from wikillm.checkpoints.retention import keep_of
from wikillm.core.errors import DivergedError, StoppedError
from wikillm.core.log import say
from wikillm.models.unpickle import only_known_classes
from wikillm.supervise.exit_file import is_agreed
from wikillm.train.callbacks.disk_space import DiskSpaceCallback
from wikillm.train.callbacks.ema import EmaCallback
from wikillm.train.callbacks.eval_tasks import EvalTasksCallback
from wikillm.train.callbacks.garbage import GarbageCallback
from wikillm.train.callbacks.heartbeat import HeartbeatCallback
from wikillm.train.callbacks.replay import ReplayCallback
from wikillm.train.callbacks.report import ReportCallback
from wikillm.train.callbacks.samples import SampleCallback
from wikillm.train.callbacks.self_check import SelfCheckCallback
from wikillm.train.callbacks.spikes import SpikeCallback
from wikillm.train.callbacks.stop import StopAfterPhase, StopCallback
from wikillm.train.callbacks.time_limit import TimeLimitCallback
from wikillm.train.callbacks.weight_check import WeightCheckCallback
from wikillm.train.checkpoint_errors import check_training_state
from wikillm.train.checkpoint_state import checkpoint_state, run_values
from wikillm.train.context import RunContext
from wikillm.train.exit import Ending
from wikillm.train.plan_vs_measured import record_outcome
from wikillm.train.restore import is_portable
from wikillm.train.resume import (
    Replay,
    ResumeOptions,
    ResumePoint,
    check_same_run,
    check_same_tokens,
    log_abandoned,
    log_changes,
)
from wikillm.train.resume_keys import recorded_settings
from wikillm.train.rewind import Rewind, release
from wikillm.train.run_data import RunData, open_run_data
from wikillm.train.saver import CheckpointSaver
from wikillm.train.trainer import WikiTrainer


def train(
    context: RunContext,
    model: PreTrainedModel,
    args: TrainingArguments,
    options: ResumeOptions,
    end: Ending,
) -> None:
    """Train to the horizon and log the result. (all ranks)

    Raises Rewind to train from the newest checkpoint again, once this part of the run is closed;
    StoppedError after a complete checkpoint when a signal or the time limit asked for it.
    """
    start = time.monotonic()
    # Compare the checkpoint with this run before anything of it is loaded.
    point = context.point
    data = open_run_data(context) if point is None else _resume_data(context, point, options)
    saver = _saver(context)
    trainer = WikiTrainer(model, args, data, context, saver)
    report = ReportCallback(trainer)
    stop = StopCallback(trainer)
    garbage = GarbageCallback()
    trainer.run_state = lambda step: checkpoint_state(
        trainer, step, report.meter.train_seconds, saver.longest_seconds
    )
    for callback in callbacks_in_order(trainer, report, stop, garbage, options.replay):
        trainer.add_callback(callback)
    end.step = lambda: int(trainer.state.global_step)
    context.heartbeat.enter("setup")
    context.signals.install()  # again, since the tracker has installed its own handlers

    folder = point.checkpoint if point else context.run.path
    sequence = _next_sequence(context)
    error: BaseException | None = None
    try:
        with only_known_classes(folder, trust=options.trust_checkpoint):
            trainer.train(resume_from_checkpoint=str(folder) if point else None)
        _evaluate_if_left_out(trainer)
        context.heartbeat.enter("save")
        saver.finish()
        if stop.stopped_by is not None:
            raise _stopped(stop.stopped_by, trainer)
    except BaseException as caught:
        error = caught
        if isinstance(caught, DivergedError):  # raised on all ranks
            trainer.ledger.flush()
        raise
    finally:
        garbage.close()
        _finish_save(context, saver, error)
        context.heartbeat.enter("close")
        report.close(error)
        if context.world.is_main:
            with suppress(OSError):
                context.write_data_record()  # again, since the store may have grown
        if isinstance(error, Rewind):
            error.resume = _where_to_resume(context, sequence)
            _free(trainer, end)
    record_outcome(context, report.mean_tokens_per_second)
    report.log_end(time.monotonic() - start)


def _saver(context: RunContext) -> CheckpointSaver:
    """Make the checkpoint saver, and remove checkpoints above the limit. (all ranks)"""
    run = context.run
    point = context.point
    saver = CheckpointSaver(
        run.checkpoints,
        run.staging,
        context.world,
        keep_of(context.resolved.config.train),
        point.origin if point else None,
    )
    if point is not None:
        saver.longest_seconds = float(point.state.get("save_seconds", 0.0))
    saver.make_room()
    will_save = point is not None and point.step < context.plan.max_steps
    if will_save and saver.origin is not None and context.world.is_main:
        record_return(run.checkpoints, saver.origin)
    return saver


def _finish_save(context: RunContext, saver: CheckpointSaver, error: BaseException | None) -> None:
    """Wait for a save that began before the error and is sound. (all ranks)

    The wait is limited, unless all ranks have the same error: otherwise ranks may be gone.
    """
    seconds = None
    if is_agreed(error):
        context.heartbeat.enter("save")
    else:
        seconds = context.resolved.config.train.exit_timeout_seconds
    saver.finish_within(seconds)


def _evaluate_if_left_out(trainer: WikiTrainer) -> None:
    """Evaluate the last step's checkpoint if a stop left out or cut short its evaluation."""
    context = trainer.context
    point = context.point
    if point is None or point.step < context.plan.max_steps:
        return
    if point.state.get("held_out_step") != point.step:
        context.heartbeat.enter("evaluate")
        trainer.evaluate()


def _stopped(by: str, trainer: WikiTrainer) -> StoppedError:
    step = trainer.state.global_step
    checkpoint = trainer.context.run.checkpoints / checkpoint_name(step)
    return StoppedError(
        f"Stopped by {by} at step {step}; a complete checkpoint is at {checkpoint}.",
        fix="resume with the same command and --resume auto",
    )


def _resume_data(context: RunContext, point: ResumePoint, options: ResumeOptions) -> RunData:
    """Open the data of a resumed run after checking configuration, files and tokens."""
    values = run_values(context)
    settings = recorded_settings(context.resolved.config)
    model = context.resolved.config.model
    check_same_run(point, values, allow_change=options.allow_change, model=model, settings=settings)
    if not is_portable(point.checkpoint):
        check_training_state(
            point.checkpoint, context.world, is_deepspeed=context.engine.json is not None
        )
    say(f"resuming   {point.checkpoint} (step {point.step:,})")
    if point.step >= context.plan.max_steps:
        say(f"           nothing is left to train: the horizon is step {context.plan.max_steps:,}")
    else:
        log_abandoned(point, context.run.checkpoints)
        log_changes(point, values, settings)
    data = open_run_data(context)
    context.heartbeat.enter("supply")  # without a limit: the store may have to be built again
    data.wait_for(point.consumed_samples)
    context.heartbeat.enter("model")
    check_same_tokens(point, context.corpus.data_read(data.order, point.consumed_samples))
    # Written last, so that a refused start leaves the run's records unchanged.
    if context.world.is_main:
        context.write_start_records()
    return data


def _free(trainer: WikiTrainer, end: Ending) -> None:
    """Free this trainer's engine and memory before the next trainer is made. (all ranks)"""
    step = trainer.state.global_step
    end.step = lambda: step  # a value, since the old function refers to the trainer
    release(trainer)


def _where_to_resume(context: RunContext, sequence: int) -> str:
    """The next trainer's `resume`: this start's latest save, else its own origin. (rank 0)"""
    if _next_sequence(context) > sequence:
        return "auto"
    return str(context.point.checkpoint) if context.point else "never"


def _next_sequence(context: RunContext) -> int:
    """Sequence number of the next checkpoint: one more than that of the last published one."""
    return next_ancestry(context.run.checkpoints, 0, None).position.sequence


def callbacks_in_order(
    trainer: WikiTrainer,
    report: ReportCallback,
    stop: StopCallback,
    garbage: GarbageCallback,
    replay: Replay | None,
) -> Iterator[TrainerCallback]:
    """The callbacks in the order in which they act on a step."""
    context = trainer.context
    plan = context.plan
    train = context.resolved.config.train
    limit = TimeLimitCallback(train.max_hours, context.checkpoint_bytes, trainer.saver)
    context.signals.limit = limit.reason
    yield limit
    yield stop
    # After the vote that may ask for a checkpoint, so that differing weights are not saved.
    checks: list[TrainerCallback] = []
    if train.weight_check_steps:
        checks.append(WeightCheckCallback(train.weight_check_steps, context.group))
    checks.append(DiskSpaceCallback(context, trainer.saver))
    if train.spikes != "off":
        checks.append(SpikeCallback(trainer, report))
    yield trainer.ledger
    yield from checks
    # After the check for NaN, and before anything that saves the average.
    if train.ema_decay:
        first = math.ceil(Fraction(str(train.ema_start)) * plan.max_steps)
        yield EmaCallback(trainer, train.ema_decay, first)
    yield report
    if train.self_check != "off":
        yield SelfCheckCallback(trainer)
    yield SampleCallback(trainer, report)
    if train.eval_tasks:
        yield EvalTasksCallback(trainer, report)
    yield garbage
    yield StopAfterPhase(stop, checks)
    if replay is not None:
        yield ReplayCallback(replay)
    yield HeartbeatCallback(context.heartbeat)
