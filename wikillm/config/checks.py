"""Checks across keys that need no hardware and no data: divisibility, lengths, settings without
effect.

`compatibility` lists the features that do not work together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from wikillm.config.compatibility import Case, add_conflicts
from wikillm.config.keys import all_keys
from wikillm.config.mixture import check_mixture
from wikillm.config.origin import Origin, Setting, where_of
from wikillm.config.schema import ModelSection, RunConfig
from wikillm.config.schema_data import DataSection
from wikillm.config.schema_train import TrainSection
from wikillm.config.trained_tokenizer import PREFIX, parse_train
from wikillm.core.errors import ConfigError, Problems

HORIZON = ("train.max_tokens", "train.max_steps", "train.num_train_epochs")
BATCH = ("train.global_batch_tokens", "train.gradient_accumulation_steps")
TEXT = ("data.path", "data.mixture")
SIZE = ("model.depth", "model.size")
GROUPS = (HORIZON, BATCH, TEXT, SIZE)
"""Groups of keys that exclude each other: a key set with higher precedence (command line over file
over preset) clears the others of its group."""

_Need = tuple[str, Callable[[Any], bool], str]
_SPIKES: _Need = ("spikes", lambda action: action != "off", "report")
_TASKS: _Need = ("eval_tasks", bool, "ceval:FOLDER")
_MUON: _Need = ("optimizer", lambda name: name == "muon", "muon")
_STABLE: _Need = (
    "lr_scheduler_type",
    lambda name: name == "warmup_stable_decay",
    "warmup_stable_decay",
)
NEEDS: dict[str, _Need] = {
    "ema_start": ("ema_decay", lambda decay: decay > 0, "0.999"),
    "max_skips": ("spikes", lambda action: action == "skip", "skip"),
    "spike_window": _SPIKES,
    "spike_threshold": _SPIKES,
    "eval_tasks_steps": _TASKS,
    "eval_tasks_budget": _TASKS,
    "muon_learning_rate": _MUON,
    "muon_momentum": _MUON,
    "lr_decay_share": _STABLE,
    "lr_decay_type": _STABLE,
    "min_lr_ratio": (
        "lr_scheduler_type",
        lambda name: name == "cosine_with_min_lr",
        "cosine_with_min_lr",
    ),
}
"""Keys of `train` that have an effect only at certain values of another key: {key: (other key,
condition on its value, a value that meets the condition)}."""


def check(config: RunConfig, origins: Mapping[str, Origin], problems: Problems) -> None:
    """Add every contradiction between keys to `problems`."""
    train = config.train
    _check_heads(config.model, origins, problems)
    _check_lengths(config, origins, problems)
    _check_warmup(train, origins, problems)
    _check_sequence_parallel(config, origins, problems)
    _check_effects(train, origins, problems)
    _check_retention(train, origins, problems)
    check_mixture(config.data, origins, problems)
    precision = None if train.precision == "auto" else train.precision
    add_conflicts(Case(train, config.model, config.data, precision=precision), problems, origins)
    _check_data(config.data, origins, problems)
    if all(getattr(train, key.removeprefix("train.")) is None for key in HORIZON):
        problems.add(
            "The length of the run is not set.",
            got=f"none of {', '.join(HORIZON)} is set",
            fix="--max_steps 1000, or train.max_tokens=2.5B",
        )


def check_init_from(
    config: RunConfig, shape: list[Setting], origins: Mapping[str, Origin], problems: Problems
) -> None:
    """Add a problem for each model key that the user set, and that differs from the model in
    model.init_from."""
    for setting in shape:
        value = getattr(config.model, setting.key.removeprefix("model."))
        if value != setting.value and origins[setting.key].is_user:
            what = f"{setting.key}={value} contradicts the model in model.init_from."
            got = f"{origins[setting.key].where}; {setting.origin.where} says {setting.value}"
            problems.add(what, got=got, fix=f"leave {setting.key} out")


def ranks_that_can_share(model: ModelSection) -> list[int]:
    """Sequence-parallel sizes that divide the query heads, and fit the key and value heads."""
    heads = model.num_attention_heads
    kv_heads = model.num_key_value_heads
    return [n for n in _divisors(heads) if kv_heads % n == 0 or n % kv_heads == 0]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _is_changed(key: str, value: object, origins: Mapping[str, Origin]) -> bool:
    """Whether the user set the key to a value other than its default. (A config.resolved.yaml sets
    every key, so being set is not enough.)"""
    return origins[key].is_user and value != all_keys()[key].default


def _check_effects(train: TrainSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    """Add a problem for each setting that would have no effect."""
    for name, (other, has_effect, value) in NEEDS.items():
        key = f"train.{name}"
        current = getattr(train, other)
        if _is_changed(key, getattr(train, name), origins) and not has_effect(current):
            what = f"{name} has no effect with {other}={current}."
            places = where_of(origins, key, f"train.{other}")
            problems.add(what, got=places, fix=f"train.{other}={value}")
    limit = "train.max_micro_batch_tokens"
    micro = "train.per_device_train_batch_size"
    size = train.per_device_train_batch_size
    # A micro-batch set with higher precedence than the limit overrides it; that is no error.
    is_chosen = origins[limit].rank >= origins[micro].rank
    if size != "auto" and is_chosen and _is_changed(limit, train.max_micro_batch_tokens, origins):
        problems.add(
            f"max_micro_batch_tokens has no effect with per_device_train_batch_size={size}.",
            got=where_of(origins, limit, micro),
            fix=f"{micro}=auto, or leave {limit} out",
        )


def _check_retention(
    train: TrainSection, origins: Mapping[str, Origin], problems: Problems
) -> None:
    """Add a problem if no checkpoint is saved at the steps of keep_every_steps, or none is
    evaluated for keep_best."""
    save = train.save_steps
    every = train.keep_every_steps
    if every is not None and every % save:
        problems.add(
            f"keep_every_steps={every} is not a multiple of save_steps={save}.",
            got=where_of(origins, "train.keep_every_steps", "train.save_steps"),
            fix=f"train.keep_every_steps={-(-every // save) * save}",
        )
    evaluates = train.eval_steps
    if train.keep_best and (evaluates is None or (save % evaluates and evaluates % save)):
        problems.add(
            "keep_best needs eval_steps to be a multiple of save_steps, or the reverse.",
            got=f"eval_steps={evaluates}, save_steps={save} "
            f"({where_of(origins, 'train.keep_best', 'train.eval_steps', 'train.save_steps')})",
            fix=f"train.eval_steps={save}",
        )


def _check_data(data: DataSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    """Add a problem for an invalid `train:N` tokenizer, or a data.store that names no folder."""
    if data.tokenizer.startswith(PREFIX):
        try:
            parse_train(data.tokenizer)
        except ConfigError as error:
            problems.add(error.what, got=where_of(origins, "data.tokenizer"), fix=error.fix)
    if data.store is not None and not PurePath(data.store).name:
        problems.add(
            "data.store must name a folder.",
            got=where_of(origins, "data.store"),
            fix="data.store=stores/NAME",
        )


def _check_heads(model: ModelSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    hidden = model.hidden_size
    heads = model.num_attention_heads
    kv_heads = model.num_key_value_heads
    keys = ("model.hidden_size", "model.num_attention_heads")
    if model.head_dim is None and hidden % heads:
        legal = [str(n) for n in _divisors(hidden) if hidden // n in (32, 64, 96, 128)]
        fix = f"model.num_attention_heads, one of: {', '.join(legal)}"
        problems.add(
            f"hidden_size={hidden} cannot be split over num_attention_heads={heads}.",
            got=where_of(origins, *keys),
            fix=fix if legal else "set model.head_dim as well",
        )
    elif (head_dim := model.head_dim or hidden // heads) % 2:
        problems.add(
            f"head_dim={head_dim} is odd; rotary embeddings need an even head_dim.",
            got=where_of(origins, "model.head_dim", *keys),
            fix=f"model.head_dim={head_dim + 1}",
        )
    if heads % kv_heads:
        legal = [str(n) for n in _divisors(heads)]
        problems.add(
            f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}.",
            got=where_of(origins, "model.num_attention_heads", "model.num_key_value_heads"),
            fix=f"model.num_key_value_heads, one of: {', '.join(legal)}",
        )


def _check_lengths(config: RunConfig, origins: Mapping[str, Origin], problems: Problems) -> None:
    length = config.train.sequence_length
    limit = config.model.max_position_embeddings
    if length > limit:
        fix = f"a train.sequence_length of at most {limit}"
        if config.model.init_from is None:
            fix += f", or model.max_position_embeddings={length}"
        problems.add(
            f"sequence_length={length} is longer than max_position_embeddings={limit}.",
            got=where_of(origins, "train.sequence_length", "model.max_position_embeddings"),
            fix=fix,
        )


def _check_sequence_parallel(
    config: RunConfig, origins: Mapping[str, Origin], problems: Problems
) -> None:
    """Ranks that share a sequence need equal parts of it, and equal numbers of heads."""
    key = "train.sequence_parallel_size"
    size = config.train.sequence_parallel_size
    length = config.train.sequence_length
    heads = config.model.num_attention_heads
    kv_heads = config.model.num_key_value_heads
    legal = ranks_that_can_share(config.model)
    if size == 1:
        return
    if size not in legal:
        problems.add(
            f"sequence_parallel_size={size} does not fit {heads} query and {kv_heads} key heads.",
            got=where_of(origins, key, "model.num_attention_heads", "model.num_key_value_heads"),
            fix=f"{key}, one of: {', '.join(map(str, legal))}",
        )
    elif length % size:
        problems.add(
            f"sequence_length={length} cannot be split over {size} ranks.",
            got=where_of(origins, key, "train.sequence_length"),
            fix=f"train.sequence_length={-(-length // size) * size}",
        )


def _check_warmup(train: TrainSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    key = "train.warmup_steps"
    warmup = train.warmup_steps
    if warmup >= 1 and warmup != int(warmup):
        what = f"warmup_steps={warmup:g} is neither a share nor a whole number of steps."
        fix = f"{key}={round(warmup)}"
        problems.add(what, got=where_of(origins, key), fix=fix)
    if train.lr_scheduler_type == "constant" and warmup > 0 and origins[key].is_user:
        problems.add(
            "The constant schedule has no warm-up, but warmup_steps is set.",
            got=where_of(origins, "train.lr_scheduler_type", key),
            fix="train.lr_scheduler_type=constant_with_warmup",
        )
