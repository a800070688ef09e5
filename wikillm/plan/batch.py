"""Splits the batch in tokens into micro-batch x accumulation x ranks, exactly or with an error.

The same `global_batch_tokens` gives the same optimisation on 1 rank and on 64; only micro-batch and
accumulation differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wikillm.config.origin import Origin, where_of
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import ConfigError

SHARED = "train.sequence_parallel_size"
BATCH = "train.global_batch_tokens"
MICRO = "train.per_device_train_batch_size"
LENGTH = "train.sequence_length"


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """One optimizer step: `micro` sequences x `accumulation` micro-steps x ranks = `sequences`.

    Ranks that share sequences count as one rank. After a resume with another batch, `lead` is the
    number of sequences used before the resume minus the number that this batch would have used.
    """

    micro: int
    accumulation: int
    sequences: int
    tokens: int
    lead: int = 0

    def sequences_before(self, step: int) -> int:
        """Number of sequences that the run uses before `step` (from 0)."""
        return self.lead + step * self.sequences

    def steps_for(self, sequences: int) -> int:
        """The smallest number of steps that uses at least `sequences`."""
        return -(-max(0, sequences - self.lead) // self.sequences)


def sequence_groups(train: TrainSection, origins: Mapping[str, Origin], world_size: int) -> int:
    """Number of ranks, or groups of ranks, that train on different sequences.

    Raises ConfigError if the ranks do not divide into groups.
    """
    size = train.sequence_parallel_size
    if world_size % size == 0:
        return world_size // size
    legal = [n for n in range(2, world_size + 1) if world_size % n == 0]
    fixes = [
        f"{SHARED}={max((n for n in legal if n <= size), default=1)}",
        f"a multiple of {size} ranks",
    ]
    s = "s" if world_size > 1 else ""
    raise ConfigError(
        f"sequence_parallel_size={size} does not divide the {world_size} rank{s}.",
        got=f"set by {where_of(origins, SHARED)}",
        fix="\nor ".join(fixes),
    )


def split_batch(
    train: TrainSection,
    origins: Mapping[str, Origin],
    world_size: int,
    max_micro: int | None = None,
) -> BatchSplit:
    """Derive micro-batch and accumulation.

    Without `global_batch_tokens` and `gradient_accumulation_steps` there is no accumulation.

    Args:
        max_micro: largest micro-batch that fits a rank's memory; None for no limit. It applies only
            to `train.per_device_train_batch_size=auto` with `global_batch_tokens`: a batch that
            follows from the micro-batch must not depend on the machine.

    Raises ConfigError, which names the nearest legal values, if the batch does not divide.
    """
    groups = sequence_groups(train, origins, world_size)
    length = train.sequence_length
    given = given_micro_batch(train)
    if train.global_batch_tokens is None:
        micro = _most_by_tokens(train) if given is None else given
        accumulation = train.gradient_accumulation_steps or 1
        sequences = micro * accumulation * groups
        return BatchSplit(micro, accumulation, sequences, sequences * length)
    step = (given or 1) * groups * length
    if train.global_batch_tokens % step:
        raise _indivisible(train, origins, groups, step)
    sequences = train.global_batch_tokens // length
    micro = given or _largest_divisor(train, sequences // groups, max_micro)
    accumulation = sequences // (micro * groups)
    return BatchSplit(micro, accumulation, sequences, train.global_batch_tokens)


def given_micro_batch(train: TrainSection) -> int | None:
    """`train.per_device_train_batch_size`; None for auto."""
    size = train.per_device_train_batch_size
    return None if size == "auto" else size


def _most_by_tokens(train: TrainSection) -> int:
    """Sequences of a micro-step within `train.max_micro_batch_tokens`, at least one."""
    tokens = train.max_micro_batch_tokens * train.sequence_parallel_size
    return max(1, tokens // train.sequence_length)


def _largest_divisor(train: TrainSection, per_rank: int, max_micro: int | None) -> int:
    """The micro-batch under auto: the largest divisor of a rank's sequences in both limits."""
    limit = min(
        _most_by_tokens(train), per_rank, per_rank if max_micro is None else max(1, max_micro)
    )
    return max(size for size in range(1, limit + 1) if per_rank % size == 0)


def _indivisible(
    train: TrainSection, origins: Mapping[str, Origin], groups: int, step: int
) -> ConfigError:
    """The error for a batch that is no multiple of `step` tokens.

    `step` is one micro-step over all ranks; under auto, one sequence for each rank.
    """
    wanted = train.global_batch_tokens or 0
    micro = given_micro_batch(train)
    length = train.sequence_length
    below = wanted // step * step
    legal = [value for value in (below, below + step) if value]
    nearest = min(legal, key=lambda value: (abs(value - wanted), -value))
    fixes = [f"{BATCH}={nearest}"]
    if micro is None:
        parts = f"{length}-token sequences"
        unit = "one sequence per rank (or group of ranks) is"
        fixes.append("another number of ranks")
    else:
        parts = f"{micro} sequences x {length} tokens"
        unit = "one micro-step is"
        if wanted % (length * groups) == 0:
            fixes.append(f"{MICRO}=auto, which keeps the batch")
    ranks = name_ranks(groups, train.sequence_parallel_size)
    return ConfigError(
        f"global_batch_tokens={wanted} cannot be split over {ranks} x {parts}.",
        got=f"{unit} {step} tokens; nearest legal values: {', '.join(map(str, legal))}\n"
        f"set by {where_of(origins, BATCH, MICRO, LENGTH)}",
        fix="\nor ".join(fixes),
    )


def name_ranks(groups: int, size: int) -> str:
    """`4 ranks`, or with a `size` above 1, such as 2, `2 groups of 2 ranks`."""
    s = "s" if groups > 1 else ""
    return f"{groups} rank{s}" if size == 1 else f"{groups} group{s} of {size} ranks"
