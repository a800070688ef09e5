"""The Triton kernel against float64, on a GPU or in Triton's interpreter.

The interpreter rounds to bf16 by cutting off, so a bound in bf16 is twice that of
`test_linear_cross_entropy`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

BOUNDS = {"float32": (1e-6, 4e-6), "float16": (3e-4, 1e-3), "bfloat16": (2e-3, 1.2e-2)}
PROGRAM = """
import json, sys, torch
from wikillm.kernels import reference
from wikillm.experimental.registry import LOSSES
from wikillm.kernels.linear_cross_entropy import linear_cross_entropy

def run(function, hidden, weight, labels, **options):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight, labels, count=float(len(labels)), **options)
    (loss * 0.37).backward()
    return loss.detach(), hidden.grad, weight.grad

def draw(n, h, v, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=generator).to(dtype).to(device)
    weight = (torch.randn(v, h, generator=generator) * 0.2).to(dtype).to(device)
    labels = torch.randint(0, v, (n,), generator=generator)
    labels[torch.rand(n, generator=generator) < 0.2] = -100
    labels[-1] = v - 1
    return hidden, weight, labels.to(device)

device, found = sys.argv[1], []
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for n, h, v, chunk in ((70, 16, 1013, 32), (5, 8, 33, 3), (9, 8, 20_011, 16), (1, 4, 2, 8)):
        hidden, weight, labels = draw(n, h, v, dtype, seed=n + v)
        wide = (hidden.double(), weight.double(), labels)
        truth = run(reference.linear_cross_entropy, *wide)
        options = {"chunk_rows": chunk, "experiment": LOSSES["triton"]}
        ours = run(linear_cross_entropy, hidden, weight, labels, **options)
        with torch.no_grad():
            alone = linear_cross_entropy(hidden, weight, labels, count=float(n), **options)
        assert torch.equal(alone, ours[0]) and not ours[1][labels == -100].any()
        norms = [true.norm().clamp_min(1e-6) for true in truth]
        apart = [(a.double() - b).norm() for a, b in zip(ours, truth)]
        errors = [float(a / b) for a, b in zip(apart, norms)]
        found.append([str(dtype).removeprefix("torch."), (n, h, v, chunk), errors])
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.deep), pytest.param("cuda", marks=pytest.mark.gpu)],
)
def test_error_against_float64(device: str) -> None:
    environ = os.environ | ({"TRITON_INTERPRET": "1"} if device == "cpu" else {})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, device], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) == 12
    for dtype, shape, (loss, *gradients) in found:
        loss_bound, gradient_bound = BOUNDS[dtype]
        assert loss < loss_bound and max(gradients) < gradient_bound, (
            dtype,
            shape,
            loss,
            gradients,
        )


@pytest.mark.gpu
def test_a_repetition_gives_the_same_bits() -> None:
    from wikillm.experimental.registry import LOSSES
    from wikillm.kernels.linear_cross_entropy import linear_cross_entropy

    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 64, device="cuda"), torch.randn(50_000, 64, device="cuda")
    labels = torch.randint(0, 50_000, (512,), device="cuda")

    def gradient() -> torch.Tensor:
        own = hidden.clone().requires_grad_()
        linear_cross_entropy(
            own, weight, labels, chunk_rows=128, experiment=LOSSES["triton"]
        ).backward()
        assert own.grad is not None
        return own.grad

    assert torch.equal(gradient(), gradient())
