"""The rows of a batch: input ids, targets, and positions within documents.

Positions tell attention where documents begin. Every document ends with EOS and no text encodes to
EOS, so the ids alone show where documents begin. A new start is also set where a sample wraps round
its ring, and between packed ranges. Positions count from each start; the rest of a document that
began in an earlier row counts from the start of its row. Hugging Face's models take packed
sequences in this form: without an attention mask, they build a block mask where `position_ids`
restart (eager, sdpa). With `cu_seq_lens`, flash attention need not derive the blocks in every
layer. The mask changes no target: the target of EOS is the first token of the next document.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wikillm.data.order.blocks import IGNORED, TargetRanges
from wikillm.data.order.permutation import Ints
from wikillm.data.read.corpus import Order
from wikillm.data.store.store import TokenStream

PADDING = -1  # sample index of a padding row, whose labels are all ignored


def sample_rows(
    tokens: TokenStream, order: Order, samples: Ints
) -> tuple[Ints, Ints, list[tuple[int, int]]]:
    """Inputs and targets of these samples, each B x T, and the (row, column) where ranges meet.

    After the end of a sample, and in a `PADDING` row, inputs are 0 and targets `IGNORED`.
    """
    shape = (len(samples), order.sequence_length)
    inputs = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    joins: list[tuple[int, int]] = []
    found = order.target_ranges(np.maximum(samples, 0))
    for row, (sample, ranges) in enumerate(zip(samples, found, strict=True)):
        if sample != PADDING:
            ends = _fill(tokens, inputs[row], targets[row], ranges)
            joins += [(row, column) for column in ends[:-1]]
    return inputs, targets, joins


def _fill(tokens: TokenStream, inputs: Ints, targets: Ints, ranges: TargetRanges) -> list[int]:
    """Copy the targets of these ranges, and their inputs. Return the end column of each range."""
    ends = [0]
    for start, stop in ranges:
        ids = tokens.read(start, stop + 1)
        ends.append(ends[-1] + stop - start)
        inputs[ends[-2] : ends[-1]] = ids[:-1]
        targets[ends[-2] : ends[-1]] = ids[1:]
    return ends[1:]


def document_positions(input_ids_BT: Ints, eos_id: int, joins: list[tuple[int, int]]) -> Ints:
    """Position of each input within its document, B x T.

    Args:
        joins: (row, column) of inputs that do not continue the stream from the input before.
    """
    starts_BT = np.zeros(input_ids_BT.shape, dtype=bool)
    starts_BT[:, 1:] = input_ids_BT[:, :-1] == eos_id
    for row, column in joins:
        starts_BT[row, column] = True
    columns_T = np.arange(input_ids_BT.shape[1], dtype=np.int64)
    first_BT = np.maximum.accumulate(np.where(starts_BT, columns_T, 0), axis=1)
    return np.asarray(columns_T - first_BT, dtype=np.int64)


def cumulative_lengths(positions_BT: Ints) -> tuple[npt.NDArray[np.int32], int]:
    """Starts of the documents of all rows and the end of the last; length of the longest."""
    flat = positions_BT.reshape(-1)
    bounds = np.append(np.flatnonzero(flat == 0), flat.size).astype(np.int32)
    return bounds, int(np.diff(bounds).max())
