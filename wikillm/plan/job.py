"""A run as the planner sees it: counts that hold for every way to train it on a given number of GPUs.

Works without data: the number of training tokens is given, or follows from the horizon, or is taken to be 20 per
parameter (Hoffmann et al., arXiv 2203.15556), and the note says which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wikillm.config.batch_ramp import BatchRamp
from wikillm.config.origin import where_of
from wikillm.config.precision import Precision, resolve_precision
from wikillm.config.resolved import Resolved
from wikillm.config.schema import ModelSection, RunConfig
from wikillm.config.trained_tokenizer import PREFIX, parse_train
from wikillm.core.errors import ConfigError
from wikillm.core.units import format_count
from wikillm.plan.batch import Batch, given_micro_batch, split_batch
from wikillm.plan.flops import flops_per_token
from wikillm.plan.gpus import Gpu
from wikillm.plan.horizon import count_sequences, count_steps, count_warmup
from wikillm.plan.params import count_parameters
from wikillm.plan.setup import Loss, Shape, loss_of
from wikillm.plan.vocab import resolve_vocab_size

MICRO = "train.per_device_train_batch_size"
QWEN2_TOKENIZER_LENGTH = 151_646
TOKENS_PER_PARAMETER = 20


@dataclass(frozen=True, slots=True)
class Job:
    """Per optimizer step over all ranks: `sequences`, `tokens`. `train_tokens` is the size of the corpus.

    `ramp` has the smaller batches of the first steps: a micro-batch must divide the first one too.
    """

    shape: Shape
    sequences: int
    micro: (
        int | None
    )  # sequences of a rank's micro-step, where the batch or the user leaves no choice
    ramp: BatchRamp
    tokens: int
    max_steps: int
    warmup_steps: int
    train_tokens: int
    flops_per_token: int
    precision: Precision
    loss: Loss
    tiled_mlp: bool
    sequence_parallel: int
    masked: bool
    notes: tuple[str, ...]


def describe_job(
    resolved: Resolved, *, ranks: int, gpu: Gpu, train_tokens: int | None = None
) -> Job:
    """Raises ConfigError when the batch cannot be split over `ranks`, or vocabulary or warm-up do not fit."""
    model, train = resolved.config.model, resolved.config.train
    vocab_size, vocab_note = resolve_vocab_size(
        model, resolved.origin("model.vocab_size"), _tokenizer_length(resolved)
    )
    count = count_parameters(model, vocab_size)
    batch = _batch(resolved, ranks)
    tokens_note = None
    if train_tokens is None:
        train_tokens, tokens_note = _tokens_without_data(resolved, batch, count.total)
    steps = count_steps(resolved, batch, count_sequences(train_tokens, train.sequence_length))
    warmup, warmup_note = count_warmup(resolved, steps)
    ramp_note = (
        f"batch ramp of {batch.ramp.steps:,} steps: {batch.ramp.describe()}"
        if batch.ramp.stages
        else None
    )
    precision = resolve_precision(
        train.precision, has_gpu=gpu.device == "cuda", has_bf16=gpu.has_bf16
    )
    if precision == "bf16" and not gpu.has_bf16:
        raise ConfigError(
            f"A {gpu.name} has no bf16.",
            got=where_of(resolved.origins, "train.precision"),
            fix="train.precision=fp16",
        )
    return Job(
        shape=describe_shape(model, vocab_size, train.sequence_length),
        sequences=batch.sequences,
        micro=batch.micro
        if train.global_batch_tokens is None or is_pinned(resolved, MICRO)
        else None,
        ramp=batch.ramp,
        tokens=batch.tokens,
        max_steps=steps,
        warmup_steps=warmup,
        train_tokens=train_tokens,
        flops_per_token=flops_per_token(model, vocab_size, train.sequence_length),
        precision=precision,
        loss=loss_of(train.loss_kernel),
        tiled_mlp=train.mlp_kernel == "tiled",
        sequence_parallel=train.sequence_parallel_size,
        masked=is_masked(resolved.config),
        notes=tuple(
            note for note in (vocab_note, tokens_note, warmup_note, ramp_note) if note is not None
        ),
    )


def describe_shape(model: ModelSection, vocab_size: int, sequence_length: int) -> Shape:
    """`vocab_size`: rows of the embedding, padding included."""
    count = count_parameters(model, vocab_size)
    body = (
        count.total - count.embedding * (1 if model.tie_word_embeddings else 2)
    ) // model.num_hidden_layers
    matrices = count.matmul - count.embedding
    return Shape(
        model,
        vocab_size,
        sequence_length,
        count.total,
        max(count.embedding, body),
        hidden_matrices=matrices,
    )


def is_masked(config: RunConfig) -> bool:
    """Whether SDPA gets a mask of T x T; flash and flex attention keep documents apart without one."""
    return config.train.document_mask == "on" and config.model.attn_implementation == "sdpa"


def _tokenizer_length(resolved: Resolved) -> int:
    """Of `train:8000` the number asked for; of a chosen vocabulary its rows; otherwise Qwen2's tokenizer's."""
    name, model = resolved.config.data.tokenizer, resolved.config.model
    if name.startswith(PREFIX):
        return parse_train(name)
    is_chosen = model.init_from is not None or resolved.origin("model.vocab_size").is_user
    return (
        model.vocab_size
        if is_chosen and isinstance(model.vocab_size, int)
        else QWEN2_TOKENIZER_LENGTH
    )


def _batch(resolved: Resolved, ranks: int) -> Batch:
    """One global batch. A micro-batch that the user did not set is the planner's to choose, so 1 is assumed here."""
    config = resolved.config
    if config.train.global_batch_tokens is None or is_pinned(resolved, MICRO):
        return split_batch(resolved, ranks)
    train = config.train.model_copy(update={"per_device_train_batch_size": "auto"})
    return split_batch(
        replace(resolved, config=config.model_copy(update={"train": train})), ranks, most=1
    )


def is_pinned(resolved: Resolved, key: str) -> bool:
    """Whether the user set `key` in a file or on the command line: the planner then keeps it. A micro-batch of auto is free."""
    is_free = key == MICRO and given_micro_batch(resolved.config.train) is None
    return resolved.origin(key).is_user and not is_free


def _tokens_without_data(resolved: Resolved, batch: Batch, parameters: int) -> tuple[int, str]:
    train = resolved.config.train
    if train.num_train_epochs is None:
        tokens = count_steps(resolved, batch, 1) * batch.tokens
        return (
            tokens,
            f"corpus: {format_count(tokens)} tokens, one pass over the horizon (--tokens N sets it)",
        )
    tokens = TOKENS_PER_PARAMETER * parameters
    return (
        tokens,
        f"corpus: taken to hold {format_count(tokens)} tokens, 20 per parameter (--tokens N sets it)",
    )
