"""A 64-bit digest of the token ids of an optimizer step, equal on any number of ranks.

Every id is multiplied by the key of its place (row of the global batch, column, input or target),
and the products are added modulo 2^64: multilinear hashing (Carter and Wegman 1979, Lemire and
Kaser 2014). The order of addition does not matter. So each rank adds up the rows, or parts of rows,
that it passed to the model, and the sum over ranks is the digest of the global batch. A single
changed id always changes the digest, because every key is odd; two other batches have equal digests
with probability about 2^-63. The digest finds faults, not forgery: the keys are public.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_INPUTS = 1 << 61
_TARGETS = 2 << 61
_ROWS = 3 << 61
"""The number of the first key for inputs, for targets and for rows."""


def _keys(first: int, count: int) -> Hashes:
    """The odd keys with the numbers [first, first + count): splitmix64 (Steele et al. 2014)."""
    numbers = np.uint64(first) + np.arange(count, dtype=np.uint64)
    z = numbers * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


@lru_cache(maxsize=8)
def _column_keys(first_column: int, columns: int) -> tuple[npt.NDArray[np.int64], ...]:
    """The keys of inputs and targets, as int64, which numpy also multiplies modulo 2^64."""
    inputs = _keys(_INPUTS + first_column, columns)
    targets = _keys(_TARGETS + first_column, columns)
    return inputs.view(np.int64), targets.view(np.int64)


def row_hashes(
    inputs_BT: npt.NDArray[np.int64], targets_BT: npt.NDArray[np.int64], first_column: int = 0
) -> Hashes:
    """The hash of each row, or of the part that begins at `first_column` of each row; shape [B].

    The hashes of a row's parts add up to the hash of the row. An ignored target counts with its
    label, -100, so a row of ignored targets has another hash than a row with targets.
    """
    of_inputs, of_targets = _column_keys(first_column, inputs_BT.shape[1])
    found = np.einsum("bt,t->b", inputs_BT, of_inputs)
    found += np.einsum("bt,t->b", targets_BT, of_targets)
    return found.view(np.uint64)


@lru_cache(maxsize=4096)
def row_keys(first_row: int, rows: int) -> Hashes:
    """The keys of the rows [first_row, first_row + rows) of a global batch."""
    return _keys(_ROWS + first_row, rows)


def digest_of_rows(hashes: Hashes, first_row: int) -> int:
    """The sum of these row hashes times their row keys, from row `first_row` of the batch on.

    The sum of these values over all ranks, modulo 2^64, is the digest of the step.
    """
    return int((hashes * row_keys(first_row, len(hashes))).sum(dtype=np.uint64))
