"""Puts the parts of a run together and trains: HF's Trainer, our data, and the callbacks around its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

from wikillm.config.load import Resolved
from wikillm.core.errors import StoppedError
from wikillm.core.log import say
from wikillm.core.world import World
from wikillm.data.order.blocks import SourceUse
from wikillm.data.read.corpus import Corpus, proportions
from wikillm.data.read.loader import BatchShape, SequenceShard, document_mask
from wikillm.evals.loss import HeldOutLoss
from wikillm.models.unpickle import only_known_classes
from wikillm.models.z_loss import ZLoss
from wikillm.observe.peak import PeakMemory
from wikillm.plan.batch import split_batch
from wikillm.plan.horizon import count_sequences, refuse_small_corpus
from wikillm.plan.run_plan import Plan
from wikillm.supervise.heartbeat import Heartbeat
from wikillm.supervise.signals import StopSignals
from wikillm.train.callbacks.checkpoint import CheckpointCallback
from wikillm.train.callbacks.ema import EmaCallback
from wikillm.train.callbacks.garbage import GarbageCallback
from wikillm.train.callbacks.progress import ProgressCallback
from wikillm.train.callbacks.report import ReportCallback
from wikillm.train.callbacks.samples import SampleCallback
from wikillm.train.callbacks.stop import StopCallback
from wikillm.train.callbacks.time_limit import TimeLimitCallback
from wikillm.train.checkpoint_errors import check_training_state
from wikillm.train.collectives import ControlGroup
from wikillm.train.engine import Engine, bytes_per_checkpoint
from wikillm.train.optimizer import muon_settings
from wikillm.train.plan_vs_measured import record_outcome
from wikillm.train.records import record_data, record_start
from wikillm.train.resume import (
    ResumePoint,
    check_same_run,
    check_same_tokens,
    say_abandoned,
    say_changes,
    short_facts,
)
from wikillm.train.resume_keys import settings_of
from wikillm.train.run_dir import RunDir
from wikillm.train.trainer import RunData, WikiTrainer
from wikillm.train.wait_for_data import DataWaiter


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A run that reached its horizon. Losses in nats per token; None where this process logged none."""

    run_dir: Path
    plan: Plan
    steps: int  # optimizer steps since step 0
    first_loss: float | None
    last_loss: float | None
    held_out: HeldOutLoss | None
    tokens_per_second: float | None
    seconds: float
    sources: tuple[SourceUse, ...] = ()  # of a mixture
    held_out_of: Mapping[str, HeldOutLoss] = field(default_factory=dict)  # by source of a mixture
    data_wait: float | None = (
        None  # share of the training time that this process waited for batches
    )


@dataclass
class Job:
    """Everything a run stands on, once it has been checked; `train` does the rest. (all ranks)"""

    resolved: Resolved
    plan: Plan
    engine: Engine
    corpus: Corpus
    world: World
    run: RunDir
    identity: dict[str, Any]
    group: ControlGroup
    signals: StopSignals
    peak: PeakMemory
    heartbeat: Heartbeat
    z_loss: ZLoss | None = None
    trainer: WikiTrainer | None = None
    report: ReportCallback | None = None
    limit: TimeLimitCallback | None = None

    @property
    def step(self) -> int | None:
        """Optimizer steps done; None until training has begun."""
        return None if self.trainer is None else int(self.trainer.state.global_step)

    def train(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        point: ResumePoint | None,
        *,
        allow_change: bool,
        trust_checkpoint: bool = False,
    ) -> TrainResult:
        """Train to the horizon. Raises StoppedError after a complete checkpoint when a signal asked for it."""
        cfg, start = self.resolved.config, time.monotonic()
        data = self._data_from(point, allow_change=allow_change)
        health = StopCallback(self.run, self.group, self.signals, cfg.train.max_skipped_steps)
        garbage, limit = GarbageCallback(), self._limit(point)
        saving = self._saving(point)
        self.report = report = ReportCallback(
            cfg, self.plan, self.world, self.run, self.identity, self.corpus, point
        )
        report.peak, samples = self.peak, self._samples(report)
        self.trainer = trainer = WikiTrainer(
            model,
            args,
            data,
            self.group,
            self.signals,
            [
                limit,
                health,
                *self._average(point),
                saving,
                report,
                samples,
                garbage,
                ProgressCallback(self.heartbeat),
            ],
            self.heartbeat,
            first_step=point.step if point else 0,
            consumed_samples=point.consumed_samples if point else 0,
            z_loss=self.z_loss,
            muon=muon_settings(cfg.train) if cfg.train.optimizer == "muon" else None,
        )
        trainer.remove_callback(PrinterCallback)
        health.trainer = report.trainer = samples.trainer = trainer
        self.heartbeat.enter("setup")
        self.signals.install()  # once more: the tracker has installed handlers of its own
        error: BaseException | None = None
        try:
            with only_known_classes(
                point.checkpoint if point else self.run.path, trust=trust_checkpoint
            ):
                trainer.train(resume_from_checkpoint=str(point.checkpoint) if point else None)
            if health.stopped_by is not None:
                raise StoppedError(
                    f"Stopped by {health.stopped_by} at step {self.step}; a complete checkpoint is at {saving.latest}.",
                    fix="go on with the same command and --resume auto",
                )
        except BaseException as caught:
            error = caught
            raise
        finally:
            garbage.close()
            self.heartbeat.enter("close")
            report.close(error)
            if self.world.is_main:
                with suppress(OSError):
                    record_data(self.run, self.corpus)  # once more: the store may have grown
        speed = report.mean_tokens_per_second
        record_outcome(
            self.run,
            self.resolved,
            self.plan,
            self.engine,
            self.world,
            self.group,
            self.peak,
            speed,
        )
        return self._result(trainer, report, time.monotonic() - start)

    def _result(self, trainer: WikiTrainer, report: ReportCallback, seconds: float) -> TrainResult:
        return TrainResult(
            run_dir=self.run.path,
            plan=self.plan,
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

    def _data_from(self, point: ResumePoint | None, *, allow_change: bool) -> RunData:
        """The data of this run; on resuming, only after everything has been found to be that of the checkpoint."""
        if point is None:
            return self._data()
        facts, cfg = self.facts(), self.resolved.config
        check_same_run(point, facts, allow_change=allow_change, config=cfg)
        rank, size, is_deepspeed = self.world.rank, self.world.size, self.engine.json is not None
        check_training_state(
            point.checkpoint, rank=rank, world_size=size, is_deepspeed=is_deepspeed
        )
        say(f"resuming   {point.checkpoint} (step {point.step:,})")
        if point.step >= self.plan.max_steps:
            say(
                f"           nothing is left to train: the horizon is step {self.plan.max_steps:,}; nothing is saved"
            )
        else:
            say_abandoned(point, self.run.checkpoints)
            say_changes(point, facts, cfg)
        data = self._data()
        data.wait_for(point.consumed_samples)
        check_same_tokens(point, self.corpus.data_read(data.order, point.consumed_samples))
        if (
            self.world.is_main
        ):  # not before: a start that is refused leaves the records of the run alone
            record_start(self.run, self.resolved, self.plan, self.engine, self.corpus)
        return data

    def _samples(self, report: ReportCallback) -> SampleCallback:
        return SampleCallback(
            self.resolved.config.observe,
            self.corpus.tokenizer_dir,
            self.corpus.manifest.tokenizer.eos_id,
            self.world,
            report,
            is_partitioned=self.engine.zero_stage == 3,
        )

    def _saving(self, point: ResumePoint | None) -> CheckpointCallback:
        keep, origin = self.resolved.config.train.save_total_limit, point.origin if point else None
        return CheckpointCallback(self.run, self.world, self.group, keep, self.state, origin)

    def _limit(self, point: ResumePoint | None) -> TimeLimitCallback:
        known = float(point.state.get("save_seconds", 0.0)) if point else 0.0
        hours, sequences = self.resolved.config.train.max_hours, self.plan.batch_ramp.sequences_at
        size = bytes_per_checkpoint(self.resolved.config, self.plan, self.engine)
        self.limit = TimeLimitCallback(hours, size, known, sequences=sequences)
        self.signals.limit = self.limit.reason
        return self.limit

    def _average(self, point: ResumePoint | None) -> list[EmaCallback]:
        """The callback that averages the weights, where the run wants one; it begins with those of a whole step."""
        train = self.resolved.config.train
        if not train.ema_decay:
            return []
        start = math.ceil(Fraction(str(train.ema_start)) * self.plan.max_steps)
        return [
            EmaCallback(
                train.ema_decay,
                start,
                self.world,
                self.run.staging,
                point.checkpoint if point else None,
            )
        ]

    def facts(self) -> dict[str, Any]:
        """What a checkpoint of this run is tied to (see resume.FACTS)."""
        train = self.resolved.config.train
        return {
            "store": self.corpus.manifest.fingerprint,
            "store_facts": short_facts(self.corpus.manifest.facts),
            "mixture": proportions(self.corpus.mixture),
            "seed": self.resolved.config.run.seed,
            "sequence_length": self.plan.sequence_length,
            "document_mask": self.resolved.config.train.document_mask,
            "packing": self.resolved.config.data.packing,
            "global_batch_sequences": self.plan.global_batch_sequences,
            "batch_ramp": self.plan.batch_ramp.describe(),
            "vocab_size": self.plan.vocab_size,
            "parameters": self.plan.parameters,
            "max_steps": self.plan.max_steps,
            "window_shards": self.resolved.config.data.window_shards,
            "precision": self.engine.precision,
            "zero_stage": self.engine.zero_stage,
            "optimizer": train.optimizer,
            "ema": f"{train.ema_decay:g} from {train.ema_start:g}" if train.ema_decay else "off",
            "world_size": self.world.size,
        }

    def state(self, step: int) -> dict[str, Any]:
        """What goes into a checkpoint after `step`: the facts, and where the data stands."""
        if self.trainer is None or self.report is None:
            raise RuntimeError("a checkpoint was asked for before training began")
        held_out = self.trainer.held_out
        return {
            **self.facts(),
            "step": step,
            "consumed_samples": self.trainer.consumed_samples,
            "data_read": self.corpus.data_read(
                self.trainer.data.order, self.trainer.consumed_samples
            ),
            "run": self.identity["id"],
            "tracker": self.identity["tracker"],
            "train_seconds": self.report.meter.train_seconds,
            "save_seconds": self.limit.save_seconds if self.limit else 0.0,
            "held_out": held_out.to_json() if held_out else None,
            "settings": settings_of(self.resolved.config),
        }

    def _refuse_small_corpus(self) -> None:
        """Where the plan could not, because the store was still being built. (all ranks)"""
        plan, tokens = self.plan, self.corpus.train_tokens
        if plan.epochs is None and tokens is not None:
            sequences = count_sequences(tokens, plan.sequence_length)
            refuse_small_corpus(
                self.resolved.config.train,
                self.resolved.origins,
                split_batch(self.resolved.config.train, self.resolved.origins, plan.world_size),
                sequences,
                tokens,
            )

    def _data(self) -> RunData:
        plan, cfg, corpus = self.plan, self.resolved.config, self.corpus
        order = corpus.order(plan.sequence_length, cfg.run.seed)
        shared, rank = plan.sequence_parallel_size, self.world.rank
        return RunData(
            train=corpus.train,
            val=corpus.streams("val", cfg.train.max_eval_tokens),
            order=order,
            shape=BatchShape(
                plan.micro_batch,
                plan.accumulation,
                plan.sequence_groups,
                rank // shared,
                plan.batch_ramp,
            ),
            max_eval_tokens=cfg.train.max_eval_tokens,
            eval_micro_batch=cfg.train.per_device_eval_batch_size or plan.micro_batch,
            workers=cfg.train.dataloader_num_workers,
            mask=document_mask(
                cfg.train.document_mask,
                cfg.model.attn_implementation,
                corpus.manifest.tokenizer.eos_id,
            ),
            shard=SequenceShard(shared, rank % shared) if shared > 1 else None,
            wait_for=DataWaiter(
                order, self.group, self.signals, self._refuse_small_corpus
            ).wait_for,
        )
