"""The stored measurement is read or ignored, and the planner uses it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from wikillm.cli.main import main
from wikillm.plan.calibration import (
    Calibration,
    apply_calibration,
    read_calibration,
    write_calibration,
)
from wikillm.plan.gpus import find_gpu

MADE = Calibration(
    device="Some CPU", kind="cpu", cpus=2, load=0.1, time="2026-11-23T20:00:00+0000",
    torch="2.13.0", gemm_flops=1e11,
    attention_flops=5e10, copy_bytes_per_second=1e10, all_reduce_bytes_per_second=1e9,
    all_reduce="gloo, 2 ranks",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"version": 0}',
        "\x00",
        json.dumps({"version": 1, **asdict(MADE), "gemm_flops": 0}),
    ],
)
def test_an_unusable_file_is_ignored_with_a_warning(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_calibration(MADE).write_text(text)
    assert read_calibration() is None
    assert "--calibrate" in capsys.readouterr().err


def test_a_measured_cpu_can_be_planned_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", "demo", "--gpu", "cpu", "--gpus-per-node", "2"]
    assert main(words) == 2
    assert "wikillm plan --calibrate" in capsys.readouterr().err
    write_calibration(MADE)
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    best = plan["choices"][0]
    assert (
        plan["gpu"] == "cpu" and best["precision"] == "fp32" and "Some CPU" in plan["calibration"]
    )
    assert not any("offload" in choice["recipe"] for choice in plan["choices"])
    assert plan["assumed_mfu"] == 0.5
    reached = 0.5 * MADE.gemm_flops / plan["flops_per_token"]  # traffic can only slow it down
    assert 0 < best["tokens_per_second"] <= reached * 1.001


def test_a_gpu_uses_the_measurement_of_its_kind() -> None:
    h100 = find_gpu("h100")
    made = replace(MADE, kind="cuda", device="NVIDIA H100 80GB HBM3", gemm_flops=7.98e14)
    used = apply_calibration(h100, made)
    assert (used.ceiling, used.inside_node) == (7.98e14, 1e9)
    assert apply_calibration(find_gpu("a100"), made) == find_gpu("a100")
    assert apply_calibration(h100, None) == h100
    assert apply_calibration(h100, MADE) == h100
