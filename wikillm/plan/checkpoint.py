"""Bytes of a checkpoint on the disk, by formula; a test compares them with written checkpoints.

Under every engine a checkpoint holds each value once, in float32. With P parameters, M of them in
matrices that Muon trains:

    weights            4 P
    AdamW's moments    8 P; 4 M less with Muon, whose matrices have one momentum
    moving average     4 P, with train.ema_decay

The 120M preset (P = 123.4 million) takes 12 P = 1.48 GB. Random states, digests and headers take
some tens of kilobytes.
"""

from __future__ import annotations

from wikillm.config.schema import ModelSection
from wikillm.config.schema_train import TrainSection
from wikillm.plan.params import count_parameters

_SMALL_FILES = 12_000  # config.json, the states, the manifest
_PER_RANK = 24_000  # random states
_PER_LAYER = 4_500  # headers: about twelve tensors in three files


def checkpoint_bytes(
    model: ModelSection,
    vocab_size: int,
    *,
    muon: bool = False,
    ema: bool = False,
    ranks: int = 1,
    embedding_is_sure: bool = True,
) -> int:
    """Bytes of one checkpoint.

    Args:
        vocab_size: rows of the embedding, padding included.
        embedding_is_sure: False leaves the embedding out, for a lower bound while the tokenizer is
            not known.
    """
    count = count_parameters(model, vocab_size)
    tables = 1 if model.tie_word_embeddings else 2
    parameters = count.total if embedding_is_sure else count.total - tables * count.embedding
    values = (12 + 4 * ema) * parameters
    if muon:
        values -= 4 * (count.matmul - count.embedding)
    return values + _SMALL_FILES + _PER_RANK * ranks + _PER_LAYER * model.num_hidden_layers


def checkpoints_at_most(train: TrainSection, max_steps: int) -> int:
    """Largest number of checkpoints on the disk, including the one being written."""
    permanent = max_steps // train.keep_every_steps if train.keep_every_steps else 0
    return train.save_total_limit + 1 + train.keep_best + permanent
