"""How many optimizer steps a run has, and how many of them warm the learning rate up.

A corpus of n training tokens holds n - 1 targets (each token but the first is predicted), packed into
ceil((n - 1) / T) sequences; one epoch is one pass over them. Rounding is upwards, so that a horizon is reached.
"""

from __future__ import annotations

import math
from fractions import Fraction

from wikillm.config.checks import HORIZON
from wikillm.config.origin import where_of
from wikillm.config.resolved import Resolved
from wikillm.core.errors import ConfigError
from wikillm.plan.batch import Batch, given_micro_batch

PRESET_WARMUP_SHARE = 0.1
"""A warm-up that the user did not choose for this horizon takes at most this share of it."""


def count_sequences(train_tokens: int, sequence_length: int) -> int:
    """Sequences in one pass over the training tokens; the last one may be shorter."""
    return -(-max(0, train_tokens - 1) // sequence_length)


def count_steps(
    resolved: Resolved, batch: Batch, sequences: int | None, first_epoch: int | None = None
) -> int:
    """Optimizer steps until the horizon.

    Args:
        sequences: in one pass over the corpus; None where it is not known and the horizon is no number of passes.
        first_epoch: in the first pass, when it has more of them (its windows may each have a short one).
    """
    train = resolved.config.train
    if train.max_steps is not None:
        return train.max_steps
    if train.max_tokens is not None:
        return batch.ramp.steps_for(-(-train.max_tokens // train.sequence_length))
    if train.num_train_epochs is not None and sequences is not None:
        # As a decimal fraction: ceil(10 * 0.1 * 3) must not become 4 by a rounding error of binary floats.
        epochs = Fraction(str(train.num_train_epochs))
        more = min(epochs, Fraction(1)) * ((first_epoch or sequences) - sequences)
        return batch.ramp.steps_for(math.ceil(epochs * sequences + more))
    raise ConfigError(
        "The run has no horizon.", fix="--max_steps 1000"
    )  # load() refuses this earlier


def refuse_small_corpus(
    resolved: Resolved, batch: Batch, sequences: int, train_tokens: int
) -> None:
    """A global batch must not hold a sequence twice: raises ConfigError when the corpus is smaller than one."""
    if sequences >= batch.sequences:
        return
    train = resolved.config.train
    world_step = batch.tokens // batch.accumulation
    if world_step > sequences * train.sequence_length and given_micro_batch(train) is None:
        world_step //= batch.micro  # auto goes down to one sequence for each rank
    largest = sequences * train.sequence_length // world_step * world_step
    smaller = (
        "fewer ranks"
        if given_micro_batch(train) in (None, 1)
        else "a smaller train.per_device_train_batch_size"
    )
    fix = f"train.global_batch_tokens={largest}" if largest else smaller
    raise ConfigError(
        f"The corpus has {train_tokens} training tokens, less than one global batch of {batch.tokens}.",
        got=where_of(
            resolved.origins, "data.path", "train.global_batch_tokens", "train.sequence_length"
        ),
        fix=f"{fix}, or more text",
    )


def count_warmup(resolved: Resolved, max_steps: int) -> tuple[int, str | None]:
    """Steps of linear warm-up, and a note when the configured number was shortened.

    A share (below 1) is of `max_steps`, rounded up. A number that comes from a lower layer than the horizon, or
    from a default or preset, was not chosen for this horizon: it is shortened to 10 % of the steps. One that the
    user set beside the horizon or above it must be smaller than `max_steps`, or ConfigError.
    """
    train = resolved.config.train
    warmup, origin = train.warmup_steps, resolved.origin("train.warmup_steps")
    if train.lr_scheduler_type == "constant":
        return 0, None
    if warmup < 1:
        return math.ceil(Fraction(str(warmup)) * max_steps), None
    horizon = next(key for key in HORIZON if _value(resolved, key) is not None)
    if origin.is_user and origin.rank >= resolved.origin(horizon).rank:
        if warmup < max_steps:
            return int(warmup), None
        raise ConfigError(
            f"warmup_steps={warmup:g} takes up the whole run of {max_steps} steps.",
            got=where_of(resolved.origins, "train.warmup_steps", horizon),
            fix=f"train.warmup_steps={max(1, max_steps // 10) if max_steps > 1 else 0}, or a share such as 0.05",
        )
    limit = int(max_steps * PRESET_WARMUP_SHARE)
    if warmup <= limit:
        return int(warmup), None
    return (
        limit,
        f"warm-up shortened from {warmup:g} to {limit} steps, 10 % of the {max_steps} of this run",
    )


def _value(resolved: Resolved, key: str) -> object:
    return getattr(resolved.config.train, key.removeprefix("train."))
