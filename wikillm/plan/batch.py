"""The batch in tokens -> micro-batch x accumulation x ranks, exactly or not at all.

The same `global_batch_tokens` trains the same optimisation on 1 rank and on 64: only the accumulation differs.
"""

from __future__ import annotations

from dataclasses import dataclass

from wikillm.config.batch_ramp import KEYS, BatchRamp, batch_ramp
from wikillm.config.origin import where_of
from wikillm.config.resolved import Resolved
from wikillm.core.errors import ConfigError

_KEYS = ("train.global_batch_tokens", "train.per_device_train_batch_size", "train.sequence_length")


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step: `micro` sequences x `accumulation` micro-steps x ranks = `sequences`; earlier ones by `ramp`."""

    micro: int
    accumulation: int
    sequences: int
    tokens: int
    ramp: BatchRamp


def split_batch(resolved: Resolved, world_size: int) -> Batch:
    """Derive the accumulation. Raises ConfigError with the nearest legal values when it does not divide.

    Without `global_batch_tokens` and `gradient_accumulation_steps` there is no accumulation.
    """
    train = resolved.config.train
    micro, length = train.per_device_train_batch_size, train.sequence_length
    if train.global_batch_tokens is None:
        accumulation = train.gradient_accumulation_steps or 1
        sequences = micro * accumulation * world_size
        return Batch(micro, accumulation, sequences, sequences * length, BatchRamp(sequences))
    step = micro * world_size * length
    accumulation, rest = divmod(train.global_batch_tokens, step)
    if rest:
        raise _refusal(resolved, world_size, step)
    sequences = accumulation * micro * world_size
    return Batch(micro, accumulation, sequences, train.global_batch_tokens, split_ramp(resolved, world_size, micro))


def split_ramp(resolved: Resolved, world_size: int, micro: int) -> BatchRamp:
    """The ramp of a batch that can be split. Raises ConfigError when its first batch cannot: the others are multiples."""
    train = resolved.config.train
    ramp = batch_ramp(train, (train.global_batch_tokens or 0) // train.sequence_length)
    if not ramp.stages or (first := ramp.sequences_at(0)) % (micro * world_size) == 0:
        return ramp
    fixes = [
        f"{KEYS[0]}={size * train.sequence_length}" for _, size in ramp.stages if size % (micro * world_size) == 0
    ][:1]
    if first % world_size == 0:
        smaller = max(size for size in range(1, micro) if first // world_size % size == 0)
        fixes.append(f"train.per_device_train_batch_size={smaller}, which keeps the ramp")
    raise ConfigError(
        f"batch_ramp_from={train.batch_ramp_from} cannot be split over {world_size} ranks x {micro} sequences x "
        f"{train.sequence_length} tokens.",
        got=f"one micro-step is {micro * world_size * train.sequence_length} tokens\n"
        f"set by {where_of(resolved.origins, KEYS[0], *_KEYS[1:])}",
        fix="\nor ".join(fixes) or "fewer ranks, or no batch ramp",
    )


def _refusal(resolved: Resolved, world_size: int, step: int) -> ConfigError:
    train = resolved.config.train
    wanted, micro, length = train.global_batch_tokens or 0, train.per_device_train_batch_size, train.sequence_length
    below = wanted // step * step
    legal = [value for value in (below, below + step) if value]
    nearest = min(legal, key=lambda value: (abs(value - wanted), -value))
    fixes = [f"train.global_batch_tokens={nearest}"]
    if (smaller := _smaller_micro_batch(wanted, micro, length, world_size)) is not None:
        fixes.append(f"or train.per_device_train_batch_size={smaller}, which keeps the batch")
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    return ConfigError(
        f"global_batch_tokens={wanted} cannot be split over {ranks} x {micro} sequences x {length} tokens.",
        got=f"one micro-step is {step} tokens; nearest legal values: {', '.join(map(str, legal))}\n"
        f"set by {where_of(resolved.origins, *_KEYS)}",
        fix="\n".join(fixes),
    )


def _smaller_micro_batch(wanted: int, micro: int, length: int, world_size: int) -> int | None:
    """The largest micro-batch below `micro` that divides the wanted batch as it is."""
    per_rank, rest = divmod(wanted, length * world_size)
    if rest or per_rank == 0:
        return None
    return max((size for size in range(1, micro) if per_rank % size == 0), default=None)
