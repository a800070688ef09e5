"""What is trained: the model, the sequences and their number. `strategy` describes how.

No data is needed: the number of training tokens is given, or follows from the horizon, or is
assumed to be 20 per parameter (Hoffmann et al., arXiv:2203.15556); a note says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from wikillm.config.origin import Origin
from wikillm.config.resolved import Resolved
from wikillm.config.schema import ModelSection
from wikillm.config.schema_train import TrainSection
from wikillm.config.trained_tokenizer import PREFIX, parse_train
from wikillm.core.units import format_count
from wikillm.plan.batch import MICRO, BatchSplit, given_micro_batch, split_batch
from wikillm.plan.horizon import count_sequences, count_steps, count_warmup
from wikillm.plan.params import ParameterCount, count_parameters, flops_per_token
from wikillm.plan.vocab import resolve_vocab_size

QWEN2_TOKENIZER_LENGTH = 151_646
TOKENS_PER_PARAMETER = 20


@dataclass(frozen=True)
class Workload:
    """The model and the sequences of a run.

    The formulas of memory, traffic and time need only the first three fields.

    Attributes:
        vocab_size: rows of the embedding, padding included.
        sequences: sequences of an optimizer step, over all ranks.
        micro: sequences of a rank's micro-step; None if the planner may choose.
        train_tokens: size of the corpus in tokens.
        notes: assumptions, for the user.
    """

    model: ModelSection
    vocab_size: int
    sequence_length: int
    sequences: int = 1
    micro: int | None = None
    max_steps: int = 1
    warmup_steps: int = 0
    train_tokens: int = 0
    notes: tuple[str, ...] = ()

    @cached_property
    def _count(self) -> ParameterCount:
        return count_parameters(self.model, self.vocab_size)

    @property
    def parameters(self) -> int:
        return self._count.total

    @property
    def hidden_matrices(self) -> int:
        """Elements of the matrices inside the layers, the ones that Muon trains."""
        return self._count.matmul - self._count.embedding

    @property
    def largest_module(self) -> int:
        """Elements of the largest module that ZeRO-3 gathers at once: the embedding or a layer."""
        tables = 1 if self.model.tie_word_embeddings else 2
        layers = self._count.total - tables * self._count.embedding
        return max(self._count.embedding, layers // self.model.num_hidden_layers)

    @property
    def flops_per_token(self) -> int:
        return flops_per_token(self.model, self.vocab_size, self.sequence_length)

    @property
    def tokens(self) -> int:
        """Tokens of an optimizer step, over all ranks."""
        return self.sequences * self.sequence_length

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.max_steps * self.tokens


def describe_workload(
    resolved: Resolved, *, ranks: int, train_tokens: int | None = None
) -> Workload:
    """The workload of a configuration on `ranks`.

    Raises ConfigError if the batch, the vocabulary or the warm-up does not fit.
    """
    model = resolved.config.model
    train = resolved.config.train
    origins = resolved.origins
    vocab_origin = origins["model.vocab_size"]
    length = _tokenizer_length(resolved.config.data.tokenizer, model, vocab_origin)
    vocab_size, vocab_note = resolve_vocab_size(model, vocab_origin, length)
    # Assume 1 for a micro-batch that the planner may choose.
    is_pinned = origins[MICRO].is_user and given_micro_batch(train) is not None
    is_fixed = train.global_batch_tokens is None or is_pinned
    if is_fixed:
        batch = split_batch(train, origins, ranks)
    else:
        free = train.model_copy(update={"per_device_train_batch_size": "auto"})
        batch = split_batch(free, origins, ranks, max_micro=1)
    tokens_note = None
    if train_tokens is None:
        parameters = count_parameters(model, vocab_size).total
        train_tokens, tokens_note = _tokens_without_data(train, batch, parameters)
    steps = count_steps(train, batch, count_sequences(train_tokens, train.sequence_length))
    warmup, warmup_note = count_warmup(train, origins, steps)
    return Workload(
        model,
        vocab_size,
        train.sequence_length,
        sequences=batch.sequences,
        micro=batch.micro if is_fixed else None,
        max_steps=steps,
        warmup_steps=warmup,
        train_tokens=train_tokens,
        notes=tuple(filter(None, (vocab_note, tokens_note, warmup_note))),
    )


def _tokenizer_length(name: str, model: ModelSection, vocab_origin: Origin) -> int:
    """8000 for `train:8000`; otherwise `vocab_size` if the user chose it, or Qwen2's length."""
    if name.startswith(PREFIX):
        return parse_train(name)
    is_chosen = model.init_from is not None or vocab_origin.is_user
    if is_chosen and isinstance(model.vocab_size, int):
        return model.vocab_size
    return QWEN2_TOKENIZER_LENGTH


def _tokens_without_data(
    train: TrainSection, batch: BatchSplit, parameters: int
) -> tuple[int, str]:
    if train.num_train_epochs is None:
        tokens = count_steps(train, batch, 1) * batch.tokens
        basis = f"{format_count(tokens)} tokens, one pass over the horizon"
    else:
        tokens = TOKENS_PER_PARAMETER * parameters
        basis = f"taken to hold {format_count(tokens)} tokens, 20 per parameter"
    return tokens, f"corpus: {basis} (--tokens N sets it)"
