"""The batch in tokens -> micro-batch x accumulation x ranks, exactly or not at all.

The same `global_batch_tokens` trains the same optimisation on 1 rank and on 64: micro-batch and accumulation differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from wikillm.config.batch_ramp import KEYS, BatchRamp, batch_ramp
from wikillm.config.origin import where_of
from wikillm.config.resolved import Resolved
from wikillm.config.schema import TrainSection
from wikillm.core.errors import ConfigError

SHARED = "train.sequence_parallel_size"
_KEYS = ("train.global_batch_tokens", "train.per_device_train_batch_size", "train.sequence_length")


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step: `micro` sequences x `accumulation` micro-steps x ranks = `sequences`; earlier ones by `ramp`.

    Ranks that share sequences count as one.
    """

    micro: int
    accumulation: int
    sequences: int
    tokens: int
    ramp: BatchRamp


def sequence_groups(resolved: Resolved, world_size: int) -> int:
    """Ranks, or groups of ranks, that train on different sequences. Raises ConfigError where a group is not full."""
    size = resolved.config.train.sequence_parallel_size
    if world_size % size == 0:
        return world_size // size
    legal = [n for n in range(2, world_size + 1) if world_size % n == 0]
    fixes = [
        f"{SHARED}={max((n for n in legal if n <= size), default=1)}",
        f"a multiple of {size} ranks",
    ]
    raise ConfigError(
        f"sequence_parallel_size={size} does not divide the {world_size} rank{'s' if world_size > 1 else ''}.",
        got=f"set by {where_of(resolved.origins, SHARED)}",
        fix="\nor ".join(fixes),
    )


def split_batch(resolved: Resolved, world_size: int, most: int | None = None) -> Batch:
    """Derive micro-batch and accumulation. Raises ConfigError with the nearest legal values when it does not divide.

    Without `global_batch_tokens` and `gradient_accumulation_steps` there is no accumulation.

    Args:
        most: sequences that fit a rank's memory; binds `train.per_device_train_batch_size=auto` alone, and not where the
            batch follows from the micro-batch: that one must not depend on the machine.
    """
    train, groups = resolved.config.train, sequence_groups(resolved, world_size)
    length = train.sequence_length
    if train.global_batch_tokens is None:
        micro = _most_by_tokens(train) if (micro := given_micro_batch(train)) is None else micro
        accumulation = train.gradient_accumulation_steps or 1
        sequences = micro * accumulation * groups
        return Batch(micro, accumulation, sequences, sequences * length, BatchRamp(sequences))
    step = (given_micro_batch(train) or 1) * groups * length
    if train.global_batch_tokens % step:
        raise _refusal(resolved, groups, step)
    sequences = train.global_batch_tokens // length
    ramp = split_ramp(resolved, groups, given_micro_batch(train) or 1)
    micro = given_micro_batch(train) or _largest_divisor(
        train, ramp.sequences_at(0) // groups, most
    )
    return Batch(micro, sequences // (micro * groups), sequences, train.global_batch_tokens, ramp)


def given_micro_batch(train: TrainSection) -> int | None:
    """`train.per_device_train_batch_size`, or None where it is auto."""
    return (
        None if train.per_device_train_batch_size == "auto" else train.per_device_train_batch_size
    )


def _most_by_tokens(train: TrainSection) -> int:
    """Sequences of a micro-step within `train.max_micro_batch_tokens`; one at least."""
    return max(
        1, train.max_micro_batch_tokens * train.sequence_parallel_size // train.sequence_length
    )


def _largest_divisor(train: TrainSection, per_rank: int, most: int | None) -> int:
    """The rule of auto: the largest divisor of a rank's sequences that keeps to the tokens and to the memory."""
    limit = min(_most_by_tokens(train), per_rank, per_rank if most is None else max(1, most))
    return max(size for size in range(1, limit + 1) if per_rank % size == 0)


def split_ramp(resolved: Resolved, groups: int, micro: int) -> BatchRamp:
    """The ramp of a batch that can be split. Raises ConfigError when its first batch cannot: the others are multiples."""
    train = resolved.config.train
    ramp = batch_ramp(train, (train.global_batch_tokens or 0) // train.sequence_length)
    if not ramp.stages or (first := ramp.sequences_at(0)) % (micro * groups) == 0:
        return ramp
    fixes = [
        f"{KEYS[0]}={size * train.sequence_length}"
        for _, size in ramp.stages
        if size % (micro * groups) == 0
    ][:1]
    if first % groups == 0:
        smaller = max(size for size in range(1, micro) if first // groups % size == 0)
        fixes.append(f"train.per_device_train_batch_size={smaller}, which keeps the ramp")
    raise ConfigError(
        f"batch_ramp_from={train.batch_ramp_from} cannot be split over {name_ranks(groups, train.sequence_parallel_size)} x {micro} sequences x "
        f"{train.sequence_length} tokens.",
        got=f"one micro-step is {micro * groups * train.sequence_length} tokens\n"
        f"set by {where_of(resolved.origins, KEYS[0], *_KEYS[1:])}",
        fix="\nor ".join(fixes) or "fewer ranks, or no batch ramp",
    )


def _refusal(resolved: Resolved, groups: int, step: int) -> ConfigError:
    """`step`: tokens of one micro-step over all ranks; under auto, of one sequence for each."""
    train = resolved.config.train
    wanted, micro, length = (
        train.global_batch_tokens or 0,
        given_micro_batch(train),
        train.sequence_length,
    )
    below = wanted // step * step
    legal = [value for value in (below, below + step) if value]
    nearest = min(legal, key=lambda value: (abs(value - wanted), -value))
    fixes = [f"train.global_batch_tokens={nearest}"]
    if micro is None:
        said, kind, keys = f"{length}-token sequences", "one sequence each", [_KEYS[0], _KEYS[2]]
        fixes = [
            ", or ".join(
                [*fixes, *_fewer_ranks(wanted, length, groups, train.sequence_parallel_size)]
            )
        ]
    else:
        said, kind, keys = f"{micro} sequences x {length} tokens", "one micro-step", list(_KEYS)
        if (smaller := _smaller_micro_batch(wanted, micro, length, groups)) is not None:
            fixes.append(
                f"or {_KEYS[1]}={smaller}, which keeps the batch ({_KEYS[1]}=auto finds it for any ranks)"
            )
    return ConfigError(
        f"global_batch_tokens={wanted} cannot be split over {name_ranks(groups, train.sequence_parallel_size)} x {said}.",
        got=f"{kind} {'is' if micro else 'makes'} {step} tokens; nearest legal values: {', '.join(map(str, legal))}\n"
        f"set by {where_of(resolved.origins, *keys)}",
        fix="\n".join(fixes),
    )


def _fewer_ranks(wanted: int, length: int, groups: int, size: int) -> list[str]:
    """The largest number of ranks below these that the batch divides into, if the batch is whole sequences."""
    if wanted % length:
        return []
    fewer = max(
        (count for count in range(1, groups) if wanted // length % count == 0), default=None
    )
    return [] if fewer is None else [f"{fewer * size} rank{'s' if fewer * size > 1 else ''}"]


def name_ranks(groups: int, size: int) -> str:
    """`4 ranks`, or, where so many share a sequence, `2 groups of 2 ranks`."""
    s = "s" if groups > 1 else ""
    return f"{groups} rank{s}" if size == 1 else f"{groups} group{s} of {size} ranks"


def _smaller_micro_batch(wanted: int, micro: int, length: int, groups: int) -> int | None:
    """The largest micro-batch below `micro` that divides the wanted batch as it is."""
    per_rank, rest = divmod(wanted, length * groups)
    if rest or per_rank == 0:
        return None
    return max((size for size in range(1, micro) if per_rank % size == 0), default=None)
