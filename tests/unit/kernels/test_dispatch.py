"""The choice of an implementation: a pure function of shape and device, with its reason."""

from __future__ import annotations

import pytest

from wikillm.core.errors import MachineError
from wikillm.kernels.dispatch import check_loss_kernel, choose_linear_cross_entropy


@pytest.mark.parametrize(
    ("wanted", "device", "expected"),
    [
        ("auto", "cpu", "chunked, at most 512 rows (of 4,096 over 151,936 tokens on cpu)"),
        ("auto", "cuda", "chunked, at most 4,096 rows (of 4,096 over 151,936 tokens on cuda)"),
        ("auto", "mps", "stock, all rows (no fused implementation for mps)"),
        ("stock", "cpu", "stock, all rows (as asked)"),
        ("fp8", "cuda", "fp8, at most 4,096 rows (of 4,096 over 151,936 tokens on cuda)"),
    ],
)
def test_the_choice_and_its_reason(wanted: str, device: str, expected: str) -> None:
    choice = choose_linear_cross_entropy(wanted, rows=4096, vocab=151_936, device_type=device)
    assert str(choice) == expected


@pytest.mark.parametrize(("wanted", "device"), [("triton", "cpu"), ("chunked", "mps")])
def test_a_kernel_that_does_not_run_on_the_device_is_refused(wanted: str, device: str) -> None:
    with pytest.raises(MachineError, match=f"loss_kernel={wanted} does not run here") as error:
        check_loss_kernel(wanted, hidden=64, vocab=640, device_type=device)
    assert device in (error.value.got or "")
    check_loss_kernel("auto", hidden=64, vocab=640, device_type=device)
