"""Where documents begin inside a batch, for attention that does not cross them.

Every document ends with EOS and no text encodes to it, so the ids alone say where documents begin;
a sample that goes round the end of its ring, or that several documents were packed into, starts
again there too. Positions count from each beginning, or from the start of the row for the rest of a
document that began before it. This is the form in which Hugging Face's models take packed
sequences: with restarting `position_ids` and no attention mask they build a block mask (eager,
sdpa), and `cu_seq_lens` spare flash attention from deriving the blocks in every layer. The
target of EOS is the first token of the next document as ever: every token but the first is a
target.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def document_positions(input_ids_BT: Ids, eos_id: int, joins: list[tuple[int, int]]) -> Ids:
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


def cumulative_lengths(positions_BT: Ids) -> tuple[npt.NDArray[np.int32], int]:
    """Where the documents of all rows begin, and the end of the last; length of the longest."""
    flat = positions_BT.reshape(-1)
    bounds = np.append(np.flatnonzero(flat == 0), flat.size).astype(np.int32)
    return bounds, int(np.diff(bounds).max())
