"""The table that says how a resume treats each configuration key.

A value that differs from the checkpoint's is either applied or refused, and named in the log or the
error. Tests check that every key of the schema is in the table, that changes of refused keys are
refused, and that changes of applied keys apply.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wikillm.config.deepspeed import read_deepspeed
from wikillm.config.keys import flat
from wikillm.config.resolved import typed_form
from wikillm.config.schema import RunConfig

APPLIED = "applied"
"""The new value applies from the first step after the resume, and the change is logged."""
ALLOWED = "applied with --allow-change"
"""The key decides the batch or the horizon: a change is refused without the flag."""
REFUSED = "refused"
"""The checkpoint is valid only with its own value."""
IRRELEVANT = "irrelevant"
"""The key changes neither a checkpoint nor the result of a step; this start's value applies."""


def _keys(names: str) -> tuple[str, ...]:
    return tuple(names.split())


_TABLE: Mapping[str, tuple[str, ...]] = {
    APPLIED: (
        # Optimizer and schedule: the checkpoint's values are loaded, then overwritten (see
        # reapply_settings).
        *_keys("""
            train.learning_rate train.lr_scheduler_type train.lr_decay_share train.lr_decay_type
            train.min_lr_ratio train.warmup_steps train.muon_learning_rate train.muon_momentum
            train.weight_decay train.adam_beta1 train.adam_beta2 train.adam_epsilon
            train.max_grad_norm model.final_norm_init
        """),
        # When to log, evaluate, save, check or stop.
        *_keys("""
            train.logging_steps train.eval_steps train.max_eval_tokens train.save_steps
            train.save_total_limit train.keep_every_steps train.keep_best train.max_hours
            train.max_skipped_steps train.weight_check_steps train.self_check train.spikes
            train.spike_window train.spike_threshold train.max_skips observe.sample_steps
            observe.sample_prompts observe.sample_tokens train.eval_tasks train.eval_tasks_steps
            train.eval_tasks_budget
        """),
        # How a step is computed; its result is the same up to rounding.
        *_keys("""
            train.sequence_parallel_size train.per_device_train_batch_size
            train.per_device_eval_batch_size train.max_micro_batch_tokens train.loss_kernel
            train.mlp_kernel train.compile train.gradient_checkpointing model.attn_implementation
            deepspeed.config
        """),
        # Only a declaration: neither weights nor rotary embeddings depend on it.
        "model.max_position_embeddings",
    ),
    ALLOWED: _keys("""
        train.global_batch_tokens train.gradient_accumulation_steps train.max_tokens
        train.max_steps train.num_train_epochs
    """),
    REFUSED: (
        *_keys("""
            run.seed train.sequence_length train.document_mask train.optimizer train.precision
            train.ema_decay train.ema_start
        """),
        # The order of the samples, and the inputs of a token store.
        *_keys("""
            data.window_shards data.packing data.path data.mixture data.format data.text_key
            data.tokenizer data.shard_bytes data.val_fraction data.max_text_bytes
            data.max_document_bytes data.max_field_lines data.convert data.protected_terms
            data.quality data.decontaminate data.decontaminate_units data.decontaminate_share
            data.dedup data.dedup_similarity data.drop_list
        """),
        # The model, field by field.
        *_keys("""
            model.architecture model.hidden_size model.num_hidden_layers model.num_attention_heads
            model.num_key_value_heads model.head_dim model.intermediate_size
            model.tie_word_embeddings model.rope_theta model.rms_norm_eps model.vocab_size
        """),
        # The weights of step 0.
        *_keys("model.initializer_range model.init_from"),
    ),
    IRRELEVANT: _keys("""
        run.name run.dir data.preset data.licence model.preset model.depth model.size
        data.backend data.store data.cache
        data.cache_bytes data.workers data.verify data.streaming data.stall_seconds
        data.min_val_tokens data.max_bad_fraction train.dataloader_num_workers
        train.exit_timeout_seconds train.supervise train.lost_seconds train.stall_seconds
        train.rendezvous_seconds observe.live
        observe.swanlab.mode observe.swanlab.project observe.swanlab.workspace
        observe.swanlab.experiment_name observe.swanlab.log_dir
        observe.swanlab.finish_timeout_seconds observe.swanlab.hardware_seconds
        alerts.events alerts.webhook alerts.dingtalk alerts.dingtalk_secret alerts.lark
        alerts.lark_secret alerts.wecom alerts.slack alerts.discord alerts.email_from
        alerts.email_to alerts.email_password alerts.smtp_server alerts.smtp_port
    """),
}

ON_RESUME: Mapping[str, str] = {key: role for role, keys in _TABLE.items() for key in keys}
_FIRST_WEIGHTS = "model.init_from"
"""A refused key that is recorded here, since no value in MUST_MATCH implies it."""
_JSON = "deepspeed.json"
"""The name under which the content of the file deepspeed.config is recorded, by dotted key."""


def recorded_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a checkpoint records, as JSON values."""
    values = flat(config)
    recorded = [key for key, role in ON_RESUME.items() if role in (APPLIED, ALLOWED)]
    found = {key: values[key] for key in (*recorded, _FIRST_WEIGHTS)}
    # Names only: a path may identify people and machines, and checkpoints are passed on.
    for key in ("model.init_from", "deepspeed.config"):
        if found[key] is not None:
            found[key] = Path(found[key]).name
    if config.deepspeed.config is not None:
        content = _leaves(read_deepspeed(config.deepspeed.config).json)
        found[_JSON] = {key: value for key, value in content if "/" not in str(value)}
        found[_JSON].pop("zero_optimization.stage", None)  # it is in MUST_MATCH
    return dict(json.loads(json.dumps(found)))


def _leaves(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in nested blocks."""
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`learning_rate 0.0005 -> 0.0001` for each applied key whose value differs from `then`'s."""
    lines = [
        f"{key.removeprefix('train.')} {typed_form(then[key])} -> {typed_form(now[key])}"
        for key in now
        if key in then and key not in (_FIRST_WEIGHTS, _JSON) and then[key] != now[key]
    ]
    before = then.get(_JSON)
    after = now.get(_JSON)
    if before and after:
        lines += [
            f"deepspeed {key} {typed_form(before.get(key))} -> {typed_form(after.get(key))}"
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key)
        ]
    return lines


def changed_first_weights(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """One line that names both initial models if this start's differs from the checkpoint's."""
    before = then.get(_FIRST_WEIGHTS)
    after = now.get(_FIRST_WEIGHTS)
    if _FIRST_WEIGHTS not in then or after in (None, before):
        return None
    return f"{_FIRST_WEIGHTS}: {typed_form(before)} then, {typed_form(after)} now"
