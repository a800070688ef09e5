"""Checks of GPUs on text as nvidia-smi prints it, from a program of that name on PATH; no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from wikillm.config.load import load
from wikillm.core.errors import MachineError
from wikillm.doctor import compiler, gpus, network, software
from wikillm.doctor.checks import Finding
from wikillm.doctor.examine import NODE_CHECKS
from wikillm.doctor.needs import Needs
from wikillm.doctor.preflight import refuse_broken_machine
from wikillm.doctor.run_needs import needs_of

HEAD = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.95.05              Driver Version: 580.95.05      CUDA Version: 12.4     |
+-----------------------------------------+------------------------+----------------------+
"""
SOUND = ["0, NVIDIA H100 80GB HBM3, 81559, 4, Default, 9.0, 0, Disabled",
         "1, NVIDIA H100 80GB HBM3, 81559, 4, Default, 9.0, 0, Disabled"]  # fmt: skip
CHECKS = {check.name: check for check in NODE_CHECKS}
Machine = Callable[[list[str]], None]


def nvidia_smi(folder: Path, cards: list[str]) -> None:
    """A program nvidia-smi that prints HEAD, or `cards` in answer to a query."""
    folder.mkdir()
    (folder / "head").write_text(HEAD)
    (folder / "cards").write_text("\n".join(["WARNING: infoROM is corrupted at gpu 0", *cards]))
    program = folder / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\n[ $# = 0 ] && /bin/cat {folder}/head || /bin/cat {folder}/cards\n"
    )
    program.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    def build(cards: list[str]) -> None:
        nvidia_smi(tmp_path / "bin", cards)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        gpus.read_gpus.cache_clear()

    yield build
    gpus.read_gpus.cache_clear()


def needs(slots: int = 2, *words: str) -> Needs:
    line = ["model.preset=tiny", "data.path=x.jsonl", "train.precision=bf16", *words]
    return needs_of(load(None, line, None), nodes=1, slots=slots)


def other(**cells: str) -> list[str]:
    """SOUND, but the second card differs."""
    card = gpus.GpuCard(*SOUND[1].split(", "))._replace(**cells)
    return [SOUND[0], ", ".join(card)]


def test_two_sound_cards_pass_every_check(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(SOUND)
    monkeypatch.setattr(software, "torch_cuda", lambda: "12.4")
    names = [check.name for check in NODE_CHECKS if check.name.startswith("gpu-")]
    assert {CHECKS[name](needs()).level for name in names} == {"ok"}
    assert CHECKS["gpu-driver"](needs()).found == "driver 580.95.05, 2 GPUs"
    assert gpus.gpu_kinds() == "NVIDIA H100 80GB HBM3"
    assert CHECKS["torch-build"](needs()).found == "CUDA 12.4, driver 580.95.05 up to CUDA 12.4"
    assert "128 MiB needed" in CHECKS["shared-memory"](needs()).found, "NCCL's need, not gloo's"


@pytest.mark.parametrize(
    ("name", "cards", "slots", "level", "words"),
    [
        ("gpu-count", SOUND, 8, "fail", "2 GPUs, 8 processes"),
        ("gpu-count", SOUND, 1, "warn", "2 GPUs, 1 processes"),
        ("gpu-free", other(memory_used="70312"), 2, "warn", "GPU 1: 70312 of 81559 MiB in use"),
        ("gpu-ecc", other(ecc="3"), 2, "fail", "uncorrected since the last reset: GPU 1: 3"),
        ("gpu-ecc", [SOUND[0].replace(" 0, D", " [N/A], D")], 1, "skip", "count no ECC errors"),
        ("gpu-mode", other(mig="Enabled"), 2, "fail", "MIG is on for GPU 1"),
        ("gpu-mode", other(mig="Enabled"), 1, "warn", "MIG is on for GPU 1"),
        ("gpu-mode", other(compute_mode="Prohibited"), 2, "fail", "compute mode Prohibited"),
        ("gpu-bf16", other(compute_capability="7.5"), 2, "fail", "compute capability 7.5"),
        ("gpu-bf16", other(compute_capability="[N/A]"), 2, "ok", "compute capability 9.0"),
    ],
)
def test_a_fault_of_a_card_is_named(
    machine: Machine, name: str, cards: list[str], slots: int, level: str, words: str
) -> None:
    machine(cards)
    found = CHECKS[name](needs(slots))
    assert (found.level, words in found.found) == (level, True), found


@pytest.mark.parametrize(
    ("cuda", "level"), [("13.0", "fail"), ("12.8", "warn"), ("12.4", "ok"), ("", "fail")]
)
def test_torch_must_fit_the_driver(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, cuda: str, level: str
) -> None:
    machine(SOUND)
    monkeypatch.setattr(software, "torch_cuda", lambda: cuda)
    assert CHECKS["torch-build"](needs()).level == level


def test_findings_depend_on_the_needs_of_the_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(other(compute_capability="7.5"))
    assert CHECKS["gpu-bf16"](replace(needs(), precision="auto")).level == "warn"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert CHECKS["gpu-count"](needs(1)).level == "ok"
    assert CHECKS["gpu-count"](needs(2)).fix == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("l", "ok"),
        ("=lo", "ok"),
        ("=l", "fail"),
        ("^nosuch", "ok"),
        (f"^{','.join(psutil.net_if_addrs())}", "fail"),
        ("ib,lo", "ok"),
        ("ib", "fail"),
    ],
)
def test_nccl_names_cards_by_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, level: str
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", value)
    assert CHECKS["card-named"](needs()).level == "ok", "nothing uses NCCL without a driver"
    monkeypatch.setattr(network, "DRIVER", tmp_path)
    assert CHECKS["card-named"](needs()).level == level


def test_nccl_is_told_which_of_several_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second card and the driver are made up; the route to the master is real."""
    monkeypatch.setattr(network, "DRIVER", tmp_path)
    monkeypatch.setattr(
        network, "card_addresses", lambda: {"e0": ["127.0.0.1"], "docker0": ["172.17.0.1"]}
    )
    monkeypatch.setattr(network, "is_loopback", lambda address: False)
    found = CHECKS["card-named"](replace(needs(), nodes=2, master="127.0.0.1"))
    assert (found.level, found.fix) == ("warn", "export NCCL_SOCKET_IFNAME=e0")
    monkeypatch.setattr(network, "DRIVER", tmp_path / "absent")
    assert CHECKS["card-named"](replace(needs(), nodes=2, master="127.0.0.1")).level == "ok"


def test_torch_nvcc_and_driver_must_fit_each_other(corpus: Path, tmp_path: Path) -> None:
    """torch for CUDA 13.0 is a folder of that name: the doctor reads its version.py only."""
    nvidia_smi(tmp_path / "bin", SOUND)
    nvcc = tmp_path / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise SystemExit('torch was imported')\n")
    (tmp_path / "torch/version.py").write_text("cuda: Optional[str] = '13.0'\n")

    argv = [sys.executable, "-m", "wikillm", "doctor", "--json", "--config", "demo",
            "--deepspeed", "zero2_offload", f"data.path={corpus}",
            f"run.dir={tmp_path / 'run'}"]  # fmt: skip
    environ = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    environ["PYTHONPATH"] = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    said = {each["name"]: Finding(**each) for each in json.loads(done.stdout)["checks"]}
    assert said["torch-build"].found == "CUDA 13.0, driver 580.95.05 up to CUDA 12.4"
    assert said["torch-build"].level == "fail"
    assert (said["nvcc"].level, said["nvcc"].found) == ("fail", "nvcc 12.4, torch for CUDA 13.0")
    assert said["gpu-count"].found == "2 GPUs, 2 processes", "one process per GPU"


@pytest.mark.parametrize(
    ("line", "cuda", "level", "found"),
    [
        ("", "", "skip", "not needed: C++, C"),
        ("deepspeed.config=zero2_offload", "", "skip", "not needed: C++, C"),
        ("deepspeed.config=zero2_offload", "13.0", "fail", "missing: C++"),
        ("deepspeed.config=zero3_plus", "13.0", "fail", "missing: C++"),
        ("train.compile=layers", "", "fail", "missing: C++"),
        ("train.compile=elementwise", "13.0", "fail", "missing: C"),
        ("train.optimizer=muon train.max_grad_norm=0", "13.0", "skip", "not needed"),
        ("train.optimizer=muon train.max_grad_norm=0 deepspeed.config=zero2", "13.0", "fail", ""),
        ("deepspeed.config=zero2", "13.0", "skip", "not needed: C++, C"),
    ],
)
def test_a_compiler_is_asked_for_by_runs_that_compile(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: str,
    cuda: str,
    level: str,
    found: str,
) -> None:
    machine(SOUND)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(compiler, "torch_cuda", lambda: cuda)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "ops"))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    asked = needs(2, *line.split())
    said = CHECKS["toolchain"](asked)
    assert said.level == level and found in said.found, said
    if level == "fail":
        with pytest.raises(MachineError, match="toolchain"):
            refuse_broken_machine(asked)
    else:
        refuse_broken_machine(asked)


def test_a_compiled_op_needs_no_compiler(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(SOUND)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiler, "torch_cuda", lambda: "13.0")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert CHECKS["toolchain"](needs(2, "deepspeed.config=zero2_offload")).level == "fail"
    (tmp_path / "py311_cu130/cpu_adam").mkdir(parents=True)
    (tmp_path / "py311_cu130/cpu_adam/cpu_adam.so").touch()
    assert CHECKS["toolchain"](needs(2, "deepspeed.config=zero2_offload")).level == "skip"
