"""Bytes of a checkpoint on the disk, by formula; a test compares them with written checkpoints.

With P parameters, M of them in matrices that Muon trains, and w bytes per weight in the engine's
precision (4 in fp32):

    engine            model.safetensors   DeepSpeed's weights   optimizer
    data parallel     4 P                 -                     8 P    two moments; fp32 weights
    ZeRO-0            w P + tied          w P                   8 P    12 P in 16 bit: an fp32 copy
    ZeRO-1, ZeRO-2    w P + tied          w P                   12 P   an fp32 copy, two moments
    ZeRO-3            w P                 -                     12 P

`tied` is a tied embedding, which accelerate writes once more under DeepSpeed: w V h. Muon's
matrices have one moment less (4 M), an average of the weights adds 4 P. Random states and headers
take some tens of kilobytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from wikillm.config.precision import Precision
from wikillm.config.schema import ModelSection, TrainSection
from wikillm.plan.params import count_parameters

_HEADERS = {None: 30_000, 0: 45_000}
_HEADERS_OF_PARTITIONS = 70_000  # DeepSpeed puts its script zero_to_fp32.py beside them
_PER_RANK = 15_000  # a random state


@dataclass(frozen=True, slots=True)
class Written:
    """What decides how much is written. `stage` is None without DeepSpeed."""

    precision: Precision
    stage: int | None
    muon: bool = False
    ema: bool = False
    ranks: int = 1


def checkpoint_bytes(
    model: ModelSection, vocab_size: int, written: Written, *, embedding_is_sure: bool = True
) -> int:
    """Bytes of one checkpoint.

    Args:
        vocab_size: rows of the embedding, padding included.
        embedding_is_sure: False leaves the embedding out, for a lower bound before the tokenizer
            is known.
    """
    count = count_parameters(model, vocab_size)
    tables = 1 if model.tie_word_embeddings else 2
    parameters = count.total if embedding_is_sure else count.total - tables * count.embedding
    tied = count.embedding if model.tie_word_embeddings and embedding_is_sure else 0
    width = 4 if written.precision == "fp32" else 2
    per_parameter = 4 * written.ema
    if written.stage is None:
        per_parameter += 4 + 8
        tied = 0
    elif written.stage == 0:
        per_parameter += 2 * width + (8 if written.precision == "fp32" else 12)
    elif written.stage < 3:
        per_parameter += 2 * width + 12
    else:
        per_parameter += width + 12
        tied = 0
    one_moment_less = 4 * (count.matmul - count.embedding) if written.muon else 0
    headers = _HEADERS.get(written.stage, _HEADERS_OF_PARTITIONS) + _PER_RANK * written.ranks
    return per_parameter * parameters + width * tied - one_moment_less + headers


def checkpoints_at_most(train: TrainSection, max_steps: int) -> int:
    """How many checkpoints lie on the disk at a time, the one being written included."""
    forever = max_steps // train.keep_every_steps if train.keep_every_steps else 0
    return train.save_total_limit + 1 + train.keep_best + forever
