"""Makes wikillm_state.json: what a resume compares, the progress and the settings of a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wikillm.data.read.corpus import proportions
from wikillm.train.context import RunContext
from wikillm.train.resume import short_facts
from wikillm.train.resume_keys import recorded_settings
from wikillm.train.trainer import WikiTrainer


def run_values(context: RunContext) -> dict[str, Any]:
    """The values that a resume compares with those of the checkpoint (see `resume.MUST_MATCH`)."""
    cfg = context.resolved.config
    plan = context.plan
    engine = context.engine
    corpus = context.corpus
    train = cfg.train
    return {
        "store": corpus.manifest.fingerprint,
        "store_facts": short_facts(corpus.manifest.facts),
        "mixture": proportions(corpus.mixture),
        "seed": cfg.run.seed,
        "sequence_length": plan.sequence_length,
        "document_mask": train.document_mask,
        "packing": cfg.data.packing,
        "global_batch_sequences": plan.global_batch_sequences,
        "vocab_size": plan.vocab_size,
        "parameters": plan.parameters,
        "max_steps": plan.max_steps,
        "warmup_steps": plan.warmup_steps,
        "window_shards": cfg.data.window_shards,
        "precision": engine.precision,
        "zero_stage": engine.zero_stage,
        "optimizer": train.optimizer,
        "ema": f"{train.ema_decay:g} from {train.ema_start:g}" if train.ema_decay else "off",
        "world_size": context.world.size,
    }


def checkpoint_state(
    trainer: WikiTrainer, step: int, train_seconds: float, save_seconds: float
) -> dict[str, Any]:
    """The content of wikillm_state.json: values, progress, and the settings of this start."""
    context = trainer.context
    samples = trainer.consumed_samples
    before = context.point.state.get("skipped", []) if context.point else []
    since = [asdict(window) for window in trainer.samples.skipped_before(step)]
    return {
        **run_values(context),
        "step": step,
        "consumed_samples": samples,
        "skipped": [*before, *since],
        "recent_losses": list(trainer.recent_losses),
        "data_read": context.corpus.data_read(trainer.data.order, samples),
        "run": context.identity["id"],
        "tracker": context.identity["tracker"],
        "train_seconds": train_seconds,
        "save_seconds": save_seconds,
        "held_out": trainer.held_out.to_json() if trainer.held_out else None,
        "held_out_step": trainer.held_out_step,
        "settings": recorded_settings(context.resolved.config),
    }
