"""The tiled SwiGLU: gradients against float64, and what it keeps for the backward."""

from __future__ import annotations

import pytest
import torch

from wikillm.kernels import reference
from wikillm.kernels.tiled_swiglu import tiled_swiglu

HIDDEN, WIDTH = 24, 40


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """x of (*shape, H), gate, up, down; the same numbers in every dtype."""
    torch.manual_seed(3)
    shapes = [(*shape, HIDDEN), (WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)]
    made = [
        torch.randn(s, dtype=torch.float64).to(torch.bfloat16) / (1 if i == 0 else 4)
        for i, s in enumerate(shapes)
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def outcome(function: object, tensors: list[torch.Tensor], **options: int) -> list[torch.Tensor]:
    out = function(*tensors, **options)  # type: ignore[operator]
    out.backward(
        torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out.dtype)
    )
    return [out.detach(), *(tensor.grad for tensor in tensors)]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.012)]
)
@pytest.mark.parametrize(
    ("shape", "rows"), [((37,), 8), ((3, 37), 64), ((3, 37), 1), ((3, 37), 500), ((1, 1), 16)]
)
def test_output_and_gradients_equal_the_reference(
    dtype: torch.dtype, bound: float, shape: tuple[int, ...], rows: int
) -> None:
    truth = outcome(reference.swiglu, inputs(*shape))
    found = outcome(tiled_swiglu, inputs(*shape, dtype=dtype), chunk_rows=rows)
    for wanted, got in zip(truth, found, strict=True):
        assert got.dtype == dtype and got.shape == wanted.shape
        assert float((got.double() - wanted).norm() / wanted.norm()) < bound


def test_gradients_keep_the_weights_type_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outcome(tiled_swiglu, inputs(3, 37, dtype=torch.float32), chunk_rows=16)
    assert found[0].dtype == torch.bfloat16 and {grad.dtype for grad in found[1:]} == {
        torch.float32
    }
    for wanted, got in zip(outcome(reference.swiglu, inputs(3, 37)), found, strict=True):
        assert float((got.double() - wanted).norm() / wanted.norm()) < 0.012


def kept_bytes(function: object, **options: int) -> int:
    """Bytes of the tensors that are kept for the backward, inputs excluded."""
    kept: dict[int, int] = {}
    tensors = inputs(3, 37)
    own = {tensor.data_ptr() for tensor in tensors}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function(*tensors, **options)  # type: ignore[operator]
    assert out.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in own)


def test_no_intermediate_activation_is_kept_for_the_backward() -> None:
    assert kept_bytes(reference.swiglu) >= 4 * 3 * 37 * WIDTH * 8
    assert kept_bytes(tiled_swiglu, chunk_rows=16) == 0
