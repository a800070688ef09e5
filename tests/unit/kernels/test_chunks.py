"""Rows of a chunk: bounded, even, and what is known of common shapes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wikillm.kernels.chunks import loss_chunk_rows, mlp_chunk_rows

BOUNDS = {
    (loss_chunk_rows, "cpu"): (256, 1024),
    (loss_chunk_rows, "cuda"): (2048, 8192),
    (mlp_chunk_rows, "cpu"): (256, 2048),
    (mlp_chunk_rows, "cuda"): (2048, 8192),
}


@given(
    rows=st.integers(1, 200_000),
    columns=st.integers(1, 300_000),
    case=st.sampled_from(sorted(BOUNDS, key=str)),
)
def test_chunks_are_bounded_even_and_cover_the_rows(rows: int, columns: int, case: tuple) -> None:
    rule, device = case
    chunk = rule(rows, columns, device)
    least, most = BOUNDS[case]
    assert 1 <= chunk <= most
    chunks = -(-rows // chunk)
    assert chunk * chunks - rows < 64 * chunks + chunk / 2, "no chunk is mostly empty"
    if rows >= most:
        assert chunk >= least / 2
