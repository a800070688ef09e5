"""What a single field cannot know: keys that must fit each other. Needs no machine, no world and
no data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from wikillm.config.batch_ramp import check_batch_ramp
from wikillm.config.compatibility import Case, add_conflicts
from wikillm.config.mixture import check_mixture
from wikillm.config.origin import Origin, Setting, where_of
from wikillm.config.schema import DataSection, ModelSection, RunConfig, TrainSection
from wikillm.config.trained_tokenizer import PREFIX, parse_train
from wikillm.core.errors import ConfigError, Problems

HORIZON = ("train.max_tokens", "train.max_steps", "train.num_train_epochs")
BATCH = ("train.global_batch_tokens", "train.gradient_accumulation_steps")
TEXT = ("data.path", "data.mixture")
GROUPS = (HORIZON, BATCH, TEXT)
"""Keys that exclude each other: a higher layer's replaces a lower one's."""


def check(config: RunConfig, origins: Mapping[str, Origin], problems: Problems) -> None:
    """Add every contradiction between keys to `problems`."""
    _check_heads(config.model, origins, problems)
    _check_lengths(config, origins, problems)
    _check_schedule(config.train, origins, problems)
    _check_sequence_parallel(config, origins, problems)
    train = config.train
    precision = None if train.precision == "auto" else train.precision
    case = Case(train, config.model, config.data, precision=precision)
    add_conflicts(case, problems, origins)
    check_mixture(config.data, origins, problems)
    _check_muon(config.train, origins, problems)
    check_batch_ramp(config.train, origins, problems)
    is_default = config.train.ema_start == TrainSection.model_fields["ema_start"].default
    if not config.train.ema_decay and origins["train.ema_start"].is_user and not is_default:
        got = where_of(origins, "train.ema_start")
        problems.add(
            "ema_start has no effect without ema_decay.", got=got, fix="train.ema_decay=0.999"
        )
    _check_micro_batch(config.train, origins, problems)
    _check_files(config.data, origins, problems)
    fraction = config.data.val_fraction
    if isinstance(fraction, float) and not 0 < fraction < 1:
        got = f"{fraction:g} ({where_of(origins, 'data.val_fraction')})"
        problems.add(
            "data.val_fraction is a share between 0 and 1, or auto.",
            got=got,
            fix="data.val_fraction=0.01",
        )
    if config.model.vocab_size != "auto" and config.model.vocab_size < 1:
        got = f"{config.model.vocab_size} ({where_of(origins, 'model.vocab_size')})"
        problems.add(
            "model.vocab_size is a number of rows, or auto.", got=got, fix="model.vocab_size=auto"
        )
    if all(getattr(config.train, key.removeprefix("train.")) is None for key in HORIZON):
        got = f"none of {', '.join(HORIZON)} is set"
        problems.add(
            "The run has no horizon.", got=got, fix="--max_steps 1000, or train.max_tokens=2.5B"
        )


def _check_files(data: DataSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    """Refuse names that no tokenizer can be trained for, and no store can have."""
    if data.tokenizer.startswith(PREFIX):
        try:
            parse_train(data.tokenizer)
        except ConfigError as error:
            problems.add(error.what, got=where_of(origins, "data.tokenizer"), fix=error.fix)
    if data.store is not None and not PurePath(data.store).name:
        got = where_of(origins, "data.store")
        problems.add(
            "data.store names no folder that a store can be built in.",
            got=got,
            fix="data.store=stores/NAME",
        )


def _check_micro_batch(
    train: TrainSection, origins: Mapping[str, Origin], problems: Problems
) -> None:
    key, most, micro = (
        "train.per_device_train_batch_size",
        "train.max_micro_batch_tokens",
        train.per_device_train_batch_size,
    )
    is_chosen = (
        origins[most].is_user and origins[most].rank >= origins[key].rank
    )  # a higher layer's number replaces it
    is_default = (
        train.max_micro_batch_tokens == TrainSection.model_fields["max_micro_batch_tokens"].default
    )
    if micro != "auto" and is_chosen and not is_default:
        what = f"max_micro_batch_tokens has no effect beside per_device_train_batch_size={micro}."
        problems.add(what, got=where_of(origins, most, key), fix=f"{key}=auto, or leave {most} out")


def check_init_from(
    config: RunConfig, shape: list[Setting], origins: Mapping[str, Origin], problems: Problems
) -> None:
    """The shape comes from the folder of model.init_from: what the user sets beside it must
    agree."""
    for setting in shape:
        value = getattr(config.model, setting.key.removeprefix("model."))
        if value != setting.value and origins[setting.key].is_user:
            what = f"{setting.key}={value} contradicts the model that model.init_from names."
            got = f"{origins[setting.key].where}; {setting.origin.where} says {setting.value}"
            problems.add(what, got=got, fix=f"leave {setting.key} out")


def _check_heads(model: ModelSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    def place(*names: str) -> str:
        return where_of(origins, *(f"model.{name}" for name in names))

    hidden, heads, kv_heads = (
        model.hidden_size,
        model.num_attention_heads,
        model.num_key_value_heads,
    )
    if model.head_dim is None and hidden % heads:
        what = f"hidden_size={hidden} cannot be split over num_attention_heads={heads}."
        legal = ", ".join(
            str(n)
            for n in range(1, hidden + 1)
            if hidden % n == 0 and hidden // n in (32, 64, 96, 128)
        )
        fix = f"model.num_attention_heads={legal}" if legal else "set model.head_dim as well"
        problems.add(what, got=place("hidden_size", "num_attention_heads"), fix=fix)
    elif (head_dim := model.head_dim or hidden // heads) % 2:
        names = ("head_dim", "hidden_size", "num_attention_heads")
        problems.add(
            f"The heads are {head_dim} wide; rotary embeddings need an even width.",
            got=place(*names),
        )
    if heads % kv_heads:
        what = f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}."
        legal = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        got = place("num_attention_heads", "num_key_value_heads")
        problems.add(what, got=got, fix=f"model.num_key_value_heads, one of: {legal}")


def _check_lengths(config: RunConfig, origins: Mapping[str, Origin], problems: Problems) -> None:
    length, limit = config.train.sequence_length, config.model.max_position_embeddings
    if length > limit:
        what = f"sequence_length={length} is longer than max_position_embeddings={limit}."
        got = where_of(origins, "train.sequence_length", "model.max_position_embeddings")
        fix = f"a train.sequence_length of at most {limit}"
        if config.model.init_from is None:
            fix += f", or model.max_position_embeddings={length}"
        problems.add(what, got=got, fix=fix)


def ranks_that_can_share(model: ModelSection) -> list[int]:
    """Sizes of a group of ranks in which each has equally many query heads, and the key heads that
    go with them."""
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    return [
        n
        for n in range(1, heads + 1)
        if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)
    ]


def _check_sequence_parallel(
    config: RunConfig, origins: Mapping[str, Origin], problems: Problems
) -> None:
    """Equal stretches of a sequence, and for each rank of a group equally many heads of its own."""
    size, key = config.train.sequence_parallel_size, "train.sequence_parallel_size"
    if size == 1:
        return
    heads, kv_heads = config.model.num_attention_heads, config.model.num_key_value_heads
    if size not in (legal := ranks_that_can_share(config.model)):
        problems.add(
            f"{heads} query and {kv_heads} key heads cannot be shared out over {size} ranks.",
            got=where_of(origins, key, "model.num_attention_heads", "model.num_key_value_heads"),
            fix=f"{key}, one of: {', '.join(map(str, legal))}",
        )
    elif config.train.sequence_length % size:
        longer = -(-config.train.sequence_length // size) * size
        what = f"sequence_length={config.train.sequence_length} cannot be split over {size} ranks."
        got = where_of(origins, key, "train.sequence_length")
        problems.add(what, got=got, fix=f"train.sequence_length={longer}")


def _check_muon(train: TrainSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    if train.optimizer != "muon":
        for name in ("muon_learning_rate", "muon_momentum"):
            changed = getattr(train, name) != TrainSection.model_fields[name].default
            if changed and origins[f"train.{name}"].is_user:
                got = where_of(origins, f"train.{name}", "train.optimizer")
                problems.add(
                    f"{name} has no effect with {train.optimizer}.",
                    got=got,
                    fix="train.optimizer=muon",
                )


def _check_schedule(train: TrainSection, origins: Mapping[str, Origin], problems: Problems) -> None:
    warmup, schedule = train.warmup_steps, train.lr_scheduler_type
    if warmup >= 1 and warmup != int(warmup):
        got = where_of(origins, "train.warmup_steps")
        problems.add(f"warmup_steps={warmup:g} is neither a share nor whole steps.", got=got)
    if schedule == "constant" and warmup > 0 and origins["train.warmup_steps"].is_user:
        got = where_of(origins, "train.lr_scheduler_type", "train.warmup_steps")
        fix = "train.lr_scheduler_type=constant_with_warmup"
        problems.add(
            "The constant schedule has no warm-up, and warmup_steps is set.", got=got, fix=fix
        )
    for name in ("lr_decay_share", "lr_decay_type"):
        changed = getattr(train, name) != TrainSection.model_fields[name].default
        if schedule != "warmup_stable_decay" and changed and origins[f"train.{name}"].is_user:
            got = where_of(origins, f"train.{name}", "train.lr_scheduler_type")
            fix = "train.lr_scheduler_type=warmup_stable_decay"
            problems.add(f"The {schedule} schedule has no {name}.", got=got, fix=fix)
    if schedule != "cosine_with_min_lr" and origins["train.min_lr_ratio"].is_user:
        got = where_of(origins, "train.min_lr_ratio", "train.lr_scheduler_type")
        # The default written out, as in config.resolved.yaml, asks for nothing.
        if train.min_lr_ratio != TrainSection.model_fields["min_lr_ratio"].default:
            fix = "train.lr_scheduler_type=cosine_with_min_lr"
            problems.add(f"The {schedule} schedule has no min_lr_ratio.", got=got, fix=fix)
