"""The rows of samples: the ids that the model reads, and the targets that it predicts.

And where documents begin inside a batch, for attention that does not cross them. Every document
ends with EOS and no text encodes to it, so the ids alone say where documents begin; a sample that
goes round the end of its ring, or that several documents were packed into, starts again there too.
Positions count from each beginning, or from the start of the row for the rest of a document that
began before it. This is the form in which Hugging Face's models take packed sequences: with
restarting `position_ids` and no attention mask they build a block mask (eager, sdpa), and
`cu_seq_lens` spare flash attention from deriving the blocks in every layer. The target of EOS is
the first token of the next document as ever: every token but the first is a target.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wikillm.data.order.blocks import IGNORED, TargetRanges
from wikillm.data.order.permutation import Ints
from wikillm.data.read.corpus import Order, Tokens

PADDING = -1  # a sample index that stands for "nothing": all its labels are ignored


def sample_rows(
    tokens: Tokens, order: Order, samples: Ints
) -> tuple[Ints, Ints, list[tuple[int, int]]]:
    """Inputs and targets of these samples, each B x T, and where ranges meet within a row.

    Inputs beyond a sample's end are 0, their targets `IGNORED`. `PADDING` gives such a row.
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


def _fill(tokens: Tokens, inputs: Ints, targets: Ints, ranges: TargetRanges) -> list[int]:
    """Copy these targets, and the token before each. Returns where each range ends."""
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
        joins: (row, column) of inputs that do not follow the one before them in the stream.
    """
    starts_BT = np.zeros(input_ids_BT.shape, dtype=bool)
    starts_BT[:, 1:] = input_ids_BT[:, :-1] == eos_id
    for row, column in joins:
        starts_BT[row, column] = True
    columns_T = np.arange(input_ids_BT.shape[1], dtype=np.int64)
    first_BT = np.maximum.accumulate(np.where(starts_BT, columns_T, 0), axis=1)
    return np.asarray(columns_T - first_BT, dtype=np.int64)


def cumulative_lengths(positions_BT: Ints) -> tuple[npt.NDArray[np.int32], int]:
    """Where the documents of all rows begin, and the end of the last; length of the longest."""
    flat = positions_BT.reshape(-1)
    bounds = np.append(np.flatnonzero(flat == 0), flat.size).astype(np.int32)
    return bounds, int(np.diff(bounds).max())
