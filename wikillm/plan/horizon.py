"""Computes the number of optimizer steps of a run, and the number of its warm-up steps.

A corpus of n training tokens holds n - 1 targets (each token except the first is predicted), in
ceil((n - 1) / T) sequences; an epoch is one pass over them. Steps are rounded up, so that the
horizon is reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from wikillm.config.checks import HORIZON
from wikillm.config.origin import Origin, where_of
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import ConfigError
from wikillm.plan.batch import BatchSplit, given_micro_batch

PRESET_WARMUP_SHARE = 0.1
"""Largest share of the horizon for a warm-up that the user did not choose for this horizon."""


def count_sequences(train_tokens: int, sequence_length: int) -> int:
    """Sequences in one pass over the training tokens; the last one may be shorter."""
    return -(-max(0, train_tokens - 1) // sequence_length)


def count_steps(
    train: TrainSection,
    batch: BatchSplit,
    sequences: int | None,
    first_epoch: int | None = None,
) -> int:
    """Optimizer steps until the horizon.

    Args:
        sequences: sequences in one pass over the corpus; None if unknown, which needs a horizon
            that is not in epochs.
        first_epoch: sequences in the first pass; None if it has as many as later passes. It may
            have more, since each of its windows may end with a short sequence.
    """
    if train.max_steps is not None:
        return train.max_steps
    if train.max_tokens is not None:
        return batch.steps_for(-(-train.max_tokens // train.sequence_length))
    if train.num_train_epochs is not None and sequences is not None:
        # As a decimal fraction: ceil(10 * 0.1 * 3) must not become 4 by a rounding error of binary
        # floats.
        epochs = Fraction(str(train.num_train_epochs))
        extra = min(epochs, Fraction(1)) * ((first_epoch or sequences) - sequences)
        return batch.steps_for(math.ceil(epochs * sequences + extra))
    # load() refuses this earlier.
    raise ConfigError("The length of the run is not set.", fix="--max_steps 1000")


def refuse_small_corpus(
    train: TrainSection,
    origins: Mapping[str, Origin],
    batch: BatchSplit,
    sequences: int,
    train_tokens: int,
) -> None:
    """Raise ConfigError for a corpus smaller than one global batch.

    Such a batch would hold a sequence twice.
    """
    if sequences >= batch.sequences:
        return
    world_step = batch.tokens // batch.accumulation
    if world_step > sequences * train.sequence_length and given_micro_batch(train) is None:
        world_step //= batch.micro  # auto goes down to one sequence for each rank
    largest = sequences * train.sequence_length // world_step * world_step
    if largest:
        fix = f"train.global_batch_tokens={largest}"
    elif given_micro_batch(train) in (None, 1):
        fix = "fewer ranks"
    else:
        fix = "a smaller train.per_device_train_batch_size"
    raise ConfigError(
        f"The corpus has {train_tokens} training tokens, "
        f"less than one global batch of {batch.tokens}.",
        got=where_of(origins, "data.path", "train.global_batch_tokens", "train.sequence_length"),
        fix=f"{fix}, or more text",
    )


def count_warmup(
    train: TrainSection, origins: Mapping[str, Origin], max_steps: int
) -> tuple[int, str | None]:
    """Steps of linear warm-up, and a note if the configured number was shortened.

    A value below 1 is a share of `max_steps`, rounded up. A number of steps from a default, a
    preset or a lower layer than the horizon was not chosen for this horizon: it is shortened to at
    most 10 % of the steps.

    Raises ConfigError if the user set the number in the horizon's layer or a higher one, and it is
    not below `max_steps`.
    """
    warmup = train.warmup_steps
    origin = origins["train.warmup_steps"]
    if train.lr_scheduler_type == "constant":
        return 0, None
    if warmup < 1:
        return math.ceil(Fraction(str(warmup)) * max_steps), None
    horizon = next(key for key in HORIZON if getattr(train, key.removeprefix("train.")) is not None)
    if origin.is_user and origin.rank >= origins[horizon].rank:
        if warmup < max_steps:
            return int(warmup), None
        shorter = max(1, max_steps // 10) if max_steps > 1 else 0
        raise ConfigError(
            f"warmup_steps={warmup:g} takes up the whole run of {max_steps} steps.",
            got=where_of(origins, "train.warmup_steps", horizon),
            fix=f"train.warmup_steps={shorter}, or a share such as 0.05",
        )
    limit = int(max_steps * PRESET_WARMUP_SHARE)
    if warmup <= limit:
        return int(warmup), None
    note = (
        f"warm-up shortened from {warmup:g} to {limit} steps, 10 % of the {max_steps} of this run"
    )
    return limit, note
