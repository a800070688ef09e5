"""The digest of a batch is the sum of its parts, and no two different batches share one."""

from __future__ import annotations

import numpy as np
import pytest

from wikillm.ledger.digest import digest_of_rows, row_hashes

ROWS = 8
COLUMNS = 32


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    inputs = random.integers(0, 151_646, (ROWS, COLUMNS), dtype=np.int64)
    targets = random.integers(0, 151_646, (ROWS, COLUMNS), dtype=np.int64)
    targets[-1, COLUMNS // 2 :] = -100
    return inputs, targets


def whole(inputs: np.ndarray, targets: np.ndarray) -> int:
    return digest_of_rows(row_hashes(inputs, targets), 0)


def test_a_digest_does_not_change_between_versions() -> None:
    """Ledgers of earlier versions must still be provable."""
    inputs = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    assert f"{whole(inputs, inputs + 1):016x}" == "45c5c1a3c35479a0"


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("sharing", [1, 2, 4])
def test_ranks_add_up_to_the_same_digest(groups: int, sharing: int) -> None:
    inputs, targets = batch()
    total = 0
    for row in reversed(range(0, ROWS, ROWS // groups)):
        for column in range(0, COLUMNS, COLUMNS // sharing):
            part = np.s_[row : row + ROWS // groups, column : column + COLUMNS // sharing]
            hashes = row_hashes(inputs[part].copy(), targets[part].copy(), column)
            total += digest_of_rows(hashes, row)
    assert total % 2**64 == whole(inputs, targets)


def test_any_change_gives_another_digest() -> None:
    inputs, targets = batch()
    seen = {whole(inputs, targets)}
    for row in range(ROWS):
        for column in range(COLUMNS):
            for side in (0, 1):
                changed = [inputs.copy(), targets.copy()]
                changed[side][row, column] += 1
                seen.add(whole(*changed))
    assert len(seen) == 1 + ROWS * COLUMNS * 2
    swapped = [inputs[[1, 0, *range(2, ROWS)]], targets[[1, 0, *range(2, ROWS)]]]
    seen.add(whole(*swapped))
    halves = inputs.copy()  # two ranks of a group read different rows
    halves[:2, : COLUMNS // 2] = inputs[[1, 0], : COLUMNS // 2]
    seen.add(whole(halves, targets))
    seen.add(whole(targets, inputs))
    seen.add(whole(inputs[:-1], targets[:-1]))
    assert len(seen) == 5 + ROWS * COLUMNS * 2
