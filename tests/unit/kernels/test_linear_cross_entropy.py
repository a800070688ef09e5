"""The chunked operation against float64: loss and both gradients, for every way it is called."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wikillm.kernels import reference
from wikillm.kernels.linear_cross_entropy import linear_cross_entropy

IGNORED = -100


def inputs(
    n: int, h: int, v: int, seed: int = 0, ignored: float = 0.2, size: float = 1.0
) -> tuple[torch.Tensor, ...]:
    """float64 hidden, weight, labels; logits with a deviation of about `size` * sqrt(h)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=generator, dtype=torch.float64)
    weight = torch.randn(v, h, generator=generator, dtype=torch.float64) * size
    labels = torch.randint(0, v, (n,), generator=generator)
    labels[torch.rand(n, generator=generator) < ignored] = IGNORED
    return hidden, weight, labels


def loss_and_gradients(
    function: object,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    upstream: float = 1.0,
    **options,
) -> tuple[torch.Tensor, ...]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight, labels, **options)  # type: ignore[operator]
    (loss * upstream).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.dtype == hidden.dtype and weight.grad.dtype == weight.dtype
    return loss.detach(), hidden.grad, weight.grad


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm().clamp_min(1e-30))


@settings(max_examples=60)
@given(
    n=st.integers(1, 40),
    h=st.integers(1, 9),
    v=st.integers(1, 50),
    chunk=st.integers(1, 50),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    upstream=st.sampled_from([1.0, 0.37, 4.0]),
)
def test_loss_and_gradients_equal_the_reference_for_any_shape(
    n: int, h: int, v: int, chunk: int, ignored: float, upstream: float
) -> None:
    hidden, weight, labels = inputs(n, h, v, seed=n * 53 + v, ignored=ignored)
    options = {"count": 7.0}
    truth = loss_and_gradients(
        reference.linear_cross_entropy, hidden, weight, labels, upstream, **options
    )
    found = loss_and_gradients(
        linear_cross_entropy, hidden, weight, labels, upstream, chunk_rows=chunk, **options
    )
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# Bounds: float32 about a dozen roundings of 6e-8; bf16 rounds at 2^-9 = 2e-3 on its inputs' side of
# each product.
@pytest.mark.parametrize(
    ("dtype", "loss_bound", "grad_bound"),
    [(torch.float32, 1e-6, 2e-6), (torch.bfloat16, 2e-3, 6e-3), (torch.float16, 3e-4, 1e-3)],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_error_against_float64(
    dtype: torch.dtype, loss_bound: float, grad_bound: float, device: str
) -> None:
    hidden, weight, labels = (t.to(device) for t in inputs(517, 64, 1013, size=0.2))
    hidden, weight = (
        hidden.to(dtype),
        weight.to(dtype),
    )  # rounding the inputs is not the operation's error
    options = {"count": torch.tensor(517, device=device)}
    truth = loss_and_gradients(
        reference.linear_cross_entropy, hidden.double(), weight.double(), labels, **options
    )
    found = loss_and_gradients(
        linear_cross_entropy, hidden, weight, labels, chunk_rows=100, **options
    )
    assert found[0].dtype == torch.float32
    assert relative_error(found[0], truth[0]) < loss_bound
    assert relative_error(found[1], truth[1]) < grad_bound
    assert relative_error(found[2], truth[2]) < grad_bound


def test_the_error_is_not_larger_than_that_of_the_loss_with_logits() -> None:
    hidden, weight, labels = inputs(1024, 64, 1013, size=0.2)
    low = hidden.bfloat16(), weight.bfloat16(), labels
    truth = loss_and_gradients(
        reference.linear_cross_entropy, low[0].double(), low[1].double(), labels, count=1024
    )
    stock = loss_and_gradients(reference.linear_cross_entropy, *low, count=1024)
    found = loss_and_gradients(linear_cross_entropy, *low, chunk_rows=64, count=1024)
    for name, ours, theirs, true in zip(
        ("loss", "hidden", "weight"), found, stock, truth, strict=True
    ):
        assert relative_error(ours, true) < 1.5 * relative_error(theirs, true) + 1e-6, name


def test_logits_of_hundreds_do_not_overflow() -> None:
    """The label's probability underflows to 0 there; its logarithm must not."""
    hidden, weight, labels = inputs(32, 16, 64, size=40.0, ignored=0.0)
    truth = reference.linear_cross_entropy(hidden, weight, labels)
    found = linear_cross_entropy(hidden.float(), weight.float(), labels, chunk_rows=8)
    assert truth / 32 > 200
    assert float(found) == pytest.approx(float(truth), rel=1e-5)


def test_without_gradients_only_the_loss_is_computed() -> None:
    hidden, weight, labels = inputs(9, 4, 12)
    with torch.no_grad():
        loss = linear_cross_entropy(
            hidden.requires_grad_(), weight.requires_grad_(), labels, chunk_rows=4, count=2
        )
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(
        float(reference.linear_cross_entropy(hidden, weight, labels, count=2))
    )


def test_autocast_multiplies_in_its_type_and_returns_the_weights_gradient_in_float32() -> None:
    hidden, weight, labels = inputs(64, 16, 101, size=0.3)
    hidden, weight = hidden.float(), weight.float()
    truth = loss_and_gradients(
        reference.linear_cross_entropy, hidden.double(), weight.double(), labels, count=64
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_and_gradients(
            linear_cross_entropy, hidden, weight, labels, chunk_rows=16, count=64
        )
    assert found[2].dtype == torch.float32
    assert 1e-6 < relative_error(found[1], truth[1]) < 1e-2, "in bf16, and no worse"
    assert relative_error(found[2], truth[2]) < 1e-2


def test_fp16_survives_a_large_count_with_its_loss_scale() -> None:
    """1/count alone would underflow in fp16; together with the loss scale it does not."""
    hidden, weight, labels = inputs(64, 16, 101, size=0.3)
    hidden, weight = hidden.half(), weight.half()
    options = {"count": 1_000_000, "upstream": 65536.0}
    truth = loss_and_gradients(
        reference.linear_cross_entropy, hidden.double(), weight.double(), labels, **options
    )
    found = loss_and_gradients(
        linear_cross_entropy, hidden, weight, labels, chunk_rows=16, **options
    )
    assert relative_error(found[1], truth[1]) < 2e-3
    assert relative_error(found[2], truth[2]) < 2e-3


def test_a_second_backward_is_refused() -> None:
    hidden, weight, labels = inputs(9, 4, 12)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, labels, chunk_rows=4)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward per forward"):
        loss.backward()
