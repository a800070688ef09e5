"""The choice of an implementation: a pure function of shape and device, with its reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wikillm.core.errors import MachineError
from wikillm.kernels.dispatch import check_float8, choose_linear_cross_entropy, chunk_rows


@given(
    rows=st.integers(1, 200_000),
    vocab=st.integers(1, 300_000),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_chunks_are_bounded_even_and_cover_the_rows(rows: int, vocab: int, device: str) -> None:
    chunk = chunk_rows(rows, vocab, device)
    least, most = (256, 1024) if device == "cpu" else (2048, 8192)
    assert 1 <= chunk <= most
    chunks = -(-rows // chunk)
    assert chunk * chunks - rows < 64 * chunks + chunk / 2, "no chunk is mostly empty"
    if rows >= most:
        assert chunk >= least / 2


@pytest.mark.parametrize(
    ("rows", "vocab", "device", "expected"),
    [
        (4096, 151_936, "cpu", 512),
        (16_384, 151_936, "cuda", 4096),
        (32, 600, "cpu", 64),
        (65_536, 32_000, "cuda", 8192),
    ],
)
def test_chunks_of_known_shapes(rows: int, vocab: int, device: str, expected: int) -> None:
    assert chunk_rows(rows, vocab, device) == expected


def test_the_choice_says_why() -> None:
    auto = choose_linear_cross_entropy("auto", rows=4096, vocab=151_936, device_type="cpu")
    assert str(auto) == "chunked, 512 rows (of 4,096 over 151,936 tokens on cpu)"
    assert (
        choose_linear_cross_entropy("stock", rows=64, vocab=600, device_type="cpu").name == "stock"
    )
    elsewhere = choose_linear_cross_entropy("auto", rows=64, vocab=600, device_type="mps")
    assert elsewhere.name == "stock" and "mps" in elsewhere.reason


def test_what_does_not_run_here_is_refused() -> None:
    with pytest.raises(MachineError, match="train.loss_kernel=triton does not run here"):
        choose_linear_cross_entropy("triton", rows=64, vocab=600, device_type="cpu")


def test_8_bit_floats_need_their_shapes_and_a_gpu_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_float8(hidden=32, vocab=640, device_type="cpu")
    with pytest.raises(
        MachineError, match="hidden_size 24 is not a multiple of 16; model.vocab_size 601"
    ):
        check_float8(hidden=24, vocab=601, device_type="cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(MachineError, match=r"A100 has compute capability 8\.0"):
        check_float8(hidden=32, vocab=640, device_type="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    check_float8(hidden=32, vocab=640, device_type="cuda")
    assert choose_linear_cross_entropy("fp8", rows=64, vocab=640, device_type="cuda").name == "fp8"
    assert (
        choose_linear_cross_entropy("auto", rows=64, vocab=640, device_type="cuda").name
        == "chunked"
    )
