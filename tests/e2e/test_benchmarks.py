"""The benchmarks run, and what they compare is the same computation: equal losses after equal steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def benchmark(repo: Path, out: Path, script: str, words: str) -> dict[str, Any]:
    command = [sys.executable, f"benchmarks/{script}", *words.split(), "--out", str(out)]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(out.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_kernels(repo: Path, tmp_path: Path) -> None:
    words = "--hidden 64 --layers 1 --vocab 500 --batch 2 --length 32 --repeats 2 --chunk-rows 16 64"
    found = benchmark(repo, tmp_path / "k.json", "kernels.py", words)
    for variant in ("chunked:16", "chunked:64"):
        assert found[variant]["gradient_distance"] < 1e-5
        assert found[variant]["loss"] == pytest.approx(found["stock"]["loss"], rel=1e-6)
        assert len(found[variant]["wall"]) == 2


@pytest.mark.slow
def test_losses(repo: Path, tmp_path: Path) -> None:
    """Those that run on a CPU give one loss and one gradient; the others are named with the reason."""
    found = benchmark(repo, tmp_path / "l.json", "losses.py", "--rows 96 --hidden 32 --vocab 700 --repeats 2")
    (shape,) = found["shapes"].values()
    assert {"stock", "chunked"} <= set(shape) and "triton" not in shape
    for result in shape.values():
        assert result["loss"] == pytest.approx(shape["stock"]["loss"], rel=1e-5)
        assert max(result["gradients"]) < 1e-5 and len(result["wall"]) == 2 and result["peak"] > 0


@pytest.mark.slow
def test_all_contenders_train_the_same(repo: Path, tmp_path: Path) -> None:
    """Hugging Face's Trainer, two bare loops and WikiLLM: one model, one order of samples, one optimizer."""
    words = "--hidden 64 --layers 1 --vocab 512 --batch 2 --length 32 --steps 4 --warmup 1"
    found = benchmark(repo, tmp_path / "t.json", "train.py", words)
    (contenders,) = found["shapes"].values()
    assert set(contenders) == {"hf", "bare", "bare-fused", "wikillm"}
    truth = contenders["hf"]["losses"]
    assert len(truth) == 5
    for name, result in contenders.items():
        assert result["losses"] == pytest.approx(truth, rel=1e-5), name
