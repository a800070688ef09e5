"""The linear cross entropy with 8-bit products against float64."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wikillm.experimental.float8_products import Float8Products
from wikillm.experimental.registry import LOSSES
from wikillm.kernels import reference
from wikillm.kernels.linear_cross_entropy import linear_cross_entropy

IGNORED = -100


def inputs(
    n: int = 70, h: int = 32, v: int = 640, size: float = 0.2, device: str = "cpu"
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(n + v)
    hidden, weight = (
        torch.randn(n, h, generator=generator),
        torch.randn(v, h, generator=generator) * size,
    )
    labels = torch.randint(0, v, (n,), generator=generator)
    labels[::5] = IGNORED
    return hidden.to(device), weight.to(device), labels.to(device)


def outcome(
    function: object, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, **options
):  # type: ignore[no-untyped-def]
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight, labels, count=56.0, **options)  # type: ignore[operator]
    (loss * 0.37).backward()
    return loss.detach(), hidden.grad, weight.grad


def distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


# Bounds: e4m3 rounds at 2^-4, e5m2 at 2^-3; measured were up to 5e-4 and 0.029.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [16, 33, 500])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_error_against_float64(dtype: torch.dtype, rows: int, device: str) -> None:
    hidden, weight, labels = inputs(device=device)
    truth = outcome(reference.linear_cross_entropy, hidden.double(), weight.double(), labels)
    options = {"chunk_rows": rows, "experiment": LOSSES["fp8"]}
    found = outcome(linear_cross_entropy, hidden.to(dtype), weight.to(dtype), labels, **options)
    assert found[0].dtype == torch.float32 and found[1].dtype == found[2].dtype == dtype
    assert distance(found[0], truth[0]) < 2e-3
    assert 1e-3 < distance(found[1], truth[1]) < 0.04, "in 8 bit, and no worse"
    assert 1e-3 < distance(found[2], truth[2]) < 0.04
    assert not found[1][labels == IGNORED].any()


def test_all_three_products_are_torchs_8_bit_ones() -> None:
    called: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            called.append(str(function.overloadpacket))
            return function(*args, **(kwargs or {}))

    with Watch():
        outcome(linear_cross_entropy, *inputs(n=64), chunk_rows=32, experiment=LOSSES["fp8"])
    assert called.count("aten._scaled_mm") == 2 * 3 and not {"aten.mm", "aten.addmm"} & set(called)


def test_small_probabilities_of_a_large_vocabulary_reach_the_gradient() -> None:
    """Unscaled, 1/V = 7e-6 is far below the smallest number of e4m3 and e5m2."""
    weight = torch.zeros(151_936, 16)
    weight[1:, 0] = 1e-3
    hidden = torch.ones(16, 16)
    products = Float8Products(hidden, weight)
    grad = torch.full((16, 151_936), 1 / 151_936)
    grad[:, 0] -= 1
    found = torch.empty(16, 16)
    products.grad_hidden(
        products.gradient(grad.clone(), torch.ones(16, 1, dtype=torch.bool)), found
    )
    torch.testing.assert_close(found, grad @ weight, rtol=0.1, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_element_that_is_not_finite_makes_the_result_not_finite(bad: float) -> None:
    hidden, weight, labels = inputs()
    hidden[3, 3] = bad
    loss, *gradients = outcome(
        linear_cross_entropy, hidden, weight, labels, chunk_rows=32, experiment=LOSSES["fp8"]
    )
    assert not loss.isfinite() and not any(gradient.isfinite().all() for gradient in gradients)
