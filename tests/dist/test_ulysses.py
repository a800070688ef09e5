"""Attention on sequences split across ranks, compared with whole ones and DeepSpeed's Ulysses."""

from __future__ import annotations

import pytest
from harness.attention import attend_over_ranks
from harness.ranks import run_ranks


@pytest.mark.parametrize(
    ("ranks", "query_heads", "key_heads", "dtype", "documents", "bound"),
    [
        (2, 4, 2, "float64", False, 1e-14),
        (2, 4, 2, "float64", True, 1e-14),
        (4, 8, 2, "float64", False, 1e-14),  # each key head on two ranks
        (4, 8, 8, "float32", False, 1e-5),
        (2, 4, 1, "bfloat16", True, 3e-2),
    ],
)
def test_equal_to_whole_sequences(
    ranks: int, query_heads: int, key_heads: int, dtype: str, documents: bool, bound: float
) -> None:
    for differences in run_ranks(
        attend_over_ranks, ranks, query_heads, key_heads, dtype, documents
    ):
        assert max(differences.values()) <= bound, differences
        assert ("deepspeed" in differences) is not documents
