"""Computes the `Plan` of a run: its numbers, before anything touches a GPU.

The plan is pure arithmetic on a resolved configuration, the number of ranks, the tokenizer's length
and the number of training tokens. The training arguments, the model builder and the throughput
meter read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from wikillm.config.origin import Origin
from wikillm.config.precision import Precision
from wikillm.config.resolved import Resolved
from wikillm.core.errors import ConfigError
from wikillm.plan.batch import BatchSplit, split_batch
from wikillm.plan.horizon import count_sequences, count_steps, count_warmup, refuse_small_corpus
from wikillm.plan.memory import sequences_that_fit
from wikillm.plan.params import count_parameters, flops_per_token
from wikillm.plan.strategy import strategy_of
from wikillm.plan.vocab import resolve_vocab_size
from wikillm.plan.workload import Workload

MAX_PASSES = 4


@dataclass(frozen=True, slots=True)
class RankGpu:
    """The GPU of a rank. `memory`: bytes as reported by the driver."""

    memory: int
    ranks_per_node: int
    precision: Precision


@dataclass(frozen=True, slots=True)
class Plan:
    """One run at one world size. `global_*` are per optimizer step, over all ranks."""

    parameters: int
    matmul_parameters: int
    flops_per_token: int
    vocab_size: int
    micro_batch: int
    accumulation: int
    world_size: int
    sequence_parallel_size: int  # ranks that share a sequence
    sequence_length: int
    global_batch_sequences: int
    global_batch_tokens: int
    max_steps: int
    warmup_steps: int
    total_tokens: int
    epochs: float | None  # passes over the training data; None while its size is unknown
    notes: tuple[str, ...]  # one sentence per adjusted setting, for the user

    @property
    def sequence_groups(self) -> int:
        """Ranks, or groups of ranks, that train on different sequences."""
        return self.world_size // self.sequence_parallel_size

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of a rank's micro-step."""
        return self.micro_batch * self.sequence_length // self.sequence_parallel_size

    def to_json(self) -> dict[str, Any]:
        """The content of RUN/plan.json."""
        return asdict(self)


def make_plan(
    resolved: Resolved,
    *,
    world_size: int,
    tokenizer_length: int,
    train_tokens: int | None,
    epoch: tuple[int, int] | None = None,
    gpu: RankGpu | None = None,
    done: tuple[int, int] | None = None,
) -> Plan:
    """Plan a run.

    Args:
        train_tokens: training tokens of the corpus; None while it is being built.
        epoch: sequences in the first pass and in each later pass; None for ceil((tokens - 1) / T).
        gpu: a rank's GPU, which bounds the micro-batch under auto; None on a CPU or if unknown.
        done: optimizer steps and sequences before a checkpoint, for any batch. A horizon in tokens
            or passes counts these sequences; a horizon in steps counts the steps.

    Raises ConfigError if batch, horizon, warm-up or vocabulary do not fit the ranks or the data.
    """
    model = resolved.config.model
    train = resolved.config.train
    origins = resolved.origins
    vocab_origin = origins["model.vocab_size"]
    vocab_size, vocab_note = resolve_vocab_size(model, vocab_origin, tokenizer_length)
    batch, memory_note = _split_to_fit(resolved, vocab_size, world_size, gpu)
    # The horizon. In epochs it needs the number of sequences of an epoch.
    sequences = None
    packing_note = None
    if train_tokens is not None:
        sequences = epoch[1] if epoch else count_sequences(train_tokens, train.sequence_length)
        refuse_small_corpus(train, origins, batch, sequences, train_tokens)
        if resolved.config.data.packing == "best_fit":
            packing_note = _packing_note(train_tokens, sequences, train.sequence_length)
    if done is not None:
        batch = replace(batch, lead=done[1] - done[0] * batch.sequences)
    max_steps = count_steps(train, batch, sequences, epoch[0] if epoch else None)
    warmup_steps, warmup_note = count_warmup(train, origins, max_steps)
    epochs = None if sequences is None else batch.sequences_before(max_steps) / sequences
    notes = (vocab_note, warmup_note, memory_note, packing_note)
    count = count_parameters(model, vocab_size)
    return Plan(
        parameters=count.total,
        matmul_parameters=count.matmul,
        flops_per_token=flops_per_token(model, vocab_size, train.sequence_length),
        vocab_size=vocab_size,
        micro_batch=batch.micro,
        accumulation=batch.accumulation,
        world_size=world_size,
        sequence_parallel_size=train.sequence_parallel_size,
        sequence_length=train.sequence_length,
        global_batch_sequences=batch.sequences,
        global_batch_tokens=batch.tokens,
        max_steps=max_steps,
        warmup_steps=warmup_steps,
        total_tokens=batch.sequences_before(max_steps) * train.sequence_length,
        epochs=epochs,
        notes=tuple(note for note in (*notes, _repeats_note(epochs, origins)) if note),
    )


def _packing_note(train_tokens: int, sequences: int, length: int) -> str:
    padding = 1 - (train_tokens - 1) / (sequences * length)
    share = f"{padding:.3%} of their tokens are padding"
    return f"best-fit packing: {sequences:,} sequences an epoch, {share}"


def _repeats_note(epochs: float | None, origins: Mapping[str, Origin]) -> str | None:
    """A note if a horizon that the user did not choose has more passes than help.

    Up to four passes are about as good as new text (Muennighoff et al., arXiv:2305.16264).
    """
    keys = ("train.max_tokens", "train.max_steps", "train.num_train_epochs")
    if epochs is None or epochs <= MAX_PASSES or any(origins[key].is_user for key in keys):
        return None
    return (
        f"the text is repeated {epochs:.0f} times, and after {MAX_PASSES} passes repeating helps "
        f"little: more text, a smaller model, or train.num_train_epochs={MAX_PASSES}"
    )


def _split_to_fit(
    resolved: Resolved, vocab_size: int, world_size: int, gpu: RankGpu | None
) -> tuple[BatchSplit, str | None]:
    """The split with the largest micro-batch that fits the GPU, and a note if that is a limit."""
    train = resolved.config.train
    batch = split_batch(train, resolved.origins, world_size)
    if gpu is None or train.per_device_train_batch_size != "auto":
        return batch, None
    model = resolved.config.model
    try:
        strategy = strategy_of(
            model,
            train,
            resolved.config.deepspeed.config,
            ranks=world_size,
            ranks_per_node=gpu.ranks_per_node,
            precision=gpu.precision,
        )
    except ConfigError:  # `check_recipe` refuses the DeepSpeed JSON with a more detailed error
        return batch, None
    workload = Workload(model, vocab_size, train.sequence_length)
    fitting = sequences_that_fit(workload, strategy, gpu.memory, batch.micro)
    smaller = split_batch(train, resolved.origins, world_size, fitting)
    if smaller.micro == batch.micro:
        return batch, None
    reason = (
        f"by the planner's estimate a larger one does not fit into {gpu.memory / 2**30:.3g} GiB"
    )
    return smaller, f"micro-batch {smaller.micro} instead of {batch.micro}: {reason}"
