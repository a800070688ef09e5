"""Short real measurements of this machine: plausible numbers, and no process left running."""

from __future__ import annotations

import json
import os

import pytest
import torch

from wikillm.cli.main import main
from wikillm.core.errors import MachineError
from wikillm.measure import calibrate as room
from wikillm.measure import collective
from wikillm.plan.calibration import read_calibration


def test_the_command_measures_stores_and_is_read_again(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(room.calibrate, "__defaults__", (0.4,))
    before = torch.get_rng_state()
    assert main(["plan", "--calibrate", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert torch.equal(torch.get_rng_state(), before)
    made = read_calibration()
    assert made is not None and made.gemm_flops == told["gemm_flops"]
    assert 1e8 < made.gemm_flops < 1e16 and 1e7 < made.attention_flops < 1e16
    assert 1e7 < made.copy_bytes_per_second < 1e14
    assert (
        made.kind == ("cuda" if torch.cuda.is_available() else "cpu")
        and made.cpus == os.cpu_count()
    )
    if made.kind == "cpu":
        assert (
            made.all_reduce == "gloo, 2 ranks"
            and 1e6 < (made.all_reduce_bytes_per_second or 0) < 1e12
        )
        assert main(["plan", "--config", "demo", "--gpu", "cpu", "--gpus-per-node", "2"]) == 0
        assert f"measured {made.time[:10]} on {made.device}" in capsys.readouterr().out


def test_a_rank_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(collective.sys, "executable", "/bin/false")
    with pytest.raises(MachineError, match="failed"):
        collective.measure_all_reduce(0.1)
