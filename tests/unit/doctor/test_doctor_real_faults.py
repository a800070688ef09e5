"""`wikillm doctor` on this machine, sound and with real faults.

The faults are mounts in a namespace of their own, limits, variables, sockets and programs on PATH.
Only an NVIDIA card and an InfiniBand card are not there: files of /sys and text of nvidia-smi are.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.loopback import Handler, serving
from harness.tiny_run import Words

from wikillm.doctor.software import torch_cuda

CANARY = "canary-1234"


def can_mount() -> bool:
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(words, capture_output=True, check=False).returncode == 0
    )


needs_mounts = pytest.mark.skipif(not can_mount(), reason="no mount namespaces here")


def doctor(
    line: list[str],
    *,
    mounts: tuple[str, ...] = (),
    tools: str = os.environ["PATH"],
    before: Callable[[], None] | None = None,
    **environ: str,
) -> tuple[int, dict[str, dict[str, str]], str]:
    """Run the command after `mounts`, with PATH `tools`.

    Returns its exit code, its findings by name, and all its output.
    """
    argv = [sys.executable, "-m", "wikillm", "doctor", "--json", *line]
    if mounts:
        script = "\n".join(["set -e", *mounts, 'PATH="$TOOLS" exec "$@"'])
        argv = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh", *argv]
    done = subprocess.run(
        argv,
        env={**os.environ, "TOOLS": tools, **environ},
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["checks"]}
    return done.returncode, findings, done.stdout + done.stderr


def test_a_sound_machine_has_no_failure(words: Words, tmp_path: Path) -> None:
    run = tmp_path / "runs/x"
    code, said, _ = doctor(["--deepspeed", "zero2", "--gpus", "1", *words(run)], HF_HUB_OFFLINE="1")
    assert (code, {name for name, each in said.items() if each["level"] == "fail"}) == (0, set())
    sound = {"python-version", "packages", "memory", "open-files", "shared-memory",
             "toolchain", "checkpoint-room", "card-named", "data-source",
             "batch"}  # fmt: skip
    assert {said[name]["level"] for name in sound} == {"ok"}, said
    build = ("ok", "CPU build, no GPU") if not torch_cuda() else ("warn", "no GPU is seen")
    assert said["torch-build"]["level"] == build[0] and build[1] in said["torch-build"]["found"]
    assert said["reach-swanlab"]["found"] == "this run is offline"
    assert not run.parent.exists(), "the doctor makes no folder"


@needs_mounts
def test_each_fault_of_a_machine_is_found(repo: Path, corpus: Path, tmp_path: Path) -> None:
    made = {name: tmp_path / name for name in ("small", "shm", "sys", "bin")}
    for folder in made.values():
        folder.mkdir()
    nvidia_smi = made["bin"] / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho 'No devices were found' >&2; exit 6\n")
    nvidia_smi.chmod(0o755)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise SystemExit('torch was imported')\n")
    (tmp_path / "torch/version.py").write_text("cuda: Optional[str] = '13.0'\n")
    project = tmp_path / "pyproject.toml"
    text = (repo / "pyproject.toml").read_text()
    project.write_text(text.replace('"psutil', '"no-such-package>=1",\n  "psutil<1", #', 1))
    device = "/sys/bus/pci/devices/0"
    port = "/sys/class/infiniband/mlx5_0/ports/1"
    mounts = (
        f"mount -t tmpfs -o size=64k,nr_inodes=50 tmpfs {made['small']}",
        "mount -t tmpfs -o size=1m tmpfs /dev/shm",
        f"mount --bind {project} {repo / 'pyproject.toml'}",
        f"mount -t tmpfs tmpfs /sys/bus/pci/devices && mkdir {device}",
        f"echo 0x10de >{device}/vendor && echo 0x030200 >{device}/class",
        f"mount -t tmpfs tmpfs /sys/class && mkdir -p {port} && echo '4: ACTIVE' >{port}/state",
        "mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory",
        "echo '100000 100000' >/sys/fs/cgroup/cpu.max",
        "(cd /sys/fs/cgroup; echo 1073741824 | tee memory.max >memory/memory.limit_in_bytes)",
    )

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))

    class Refuses(Handler):
        def do_HEAD(self) -> None:
            self.send(404)

    line = ["--deepspeed", "zero2_offload", "--gpus", "3", "model.preset=72b"]
    line += [f"data.path={corpus}", f"data.store={made['small'] / 'store'}"]
    line += [f"run.dir={made['small'] / 'run'}", "train.precision=bf16", "train.compile=layers"]
    line += ["train.global_batch_tokens=16384", "train.sequence_length=2048"]
    with socket.socket() as taken, serving(Refuses, SimpleNamespace()) as server:
        taken.bind(("", 0))
        taken.listen()
        number = taken.getsockname()[1]
        code, said, output = doctor(
            [*line, "--master-port", str(number)],
            mounts=mounts,
            before=limits,
            tools=f"{made['bin']}:/usr/sbin:/sbin",
            CXX="",
            GLOO_SOCKET_IFNAME="nosuch0",
            TORCHDYNAMO_DISABLE="1",
            HF_ENDPOINT=f"http://me:{CANARY}@localhost",
            SWANLAB_API_HOST=server.url,
            HF_TOKEN=CANARY,
            HF_HUB_OFFLINE="0",
            TRANSFORMERS_OFFLINE="0",
            PYTHONPATH=f"{tmp_path}:{repo}",
        )
    faults = {
        "packages": ("fail", "no-such-package missing (wanted >=1)"),
        "torch-build": ("warn", "CUDA 13.0, no GPU is seen"),
        "gpu-driver": ("fail", "1 NVIDIA devices on the bus; nvidia-smi: No devices were found"),
        "cores": ("warn", "1 cores"),
        "memory": ("fail", "1 GiB, "),
        "open-files": ("fail", "limit 200"),
        "locked-memory": ("fail", "limit 4096"),
        "shared-memory": ("fail", "1 MiB free"),
        "toolchain": ("fail", "C++"),
        "run-folder": ("warn", "inodes free"),
        "checkpoint-room": ("fail", "64 KiB free"),
        "data-source": ("warn", "for the store, 64 KiB free"),
        "card-named": ("fail", "GLOO_SOCKET_IFNAME=nosuch0"),
        "master-port": ("warn", f"port {number}: Address already in use"),
        "reach-hf-mirror": ("warn", "not a web address"),
        "reach-swanlab": ("ok", "answers"),
        "foreign-variables": ("fail", "TORCHDYNAMO_DISABLE=1"),
        "batch": ("fail", "3 processes"),
    }
    found = {name: (said[name]["level"], said[name]["found"]) for name in faults}
    wrong = {
        name: found[name]
        for name, (level, words) in faults.items()
        if found[name][0] != level or words not in found[name][1]
    }
    assert not wrong and code == 3
    assert "psutil " in said["packages"]["found"] and "(wanted <1)" in said["packages"]["found"]
    assert "zero2_offload keeps" in said["memory"]["why"]
    assert CANARY not in output


@needs_mounts
def test_a_mount_without_exec_loads_no_compiled_op(
    words: Words, repo: Path, tmp_path: Path
) -> None:
    """With an optimizer offloaded from a GPU; the card and torch for CUDA are text."""
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho '0, H100, 81559, 4, Default, 9.0, 0, Disabled'\n")
    nvidia_smi.chmod(0o755)
    for folder in ("torch", "noexec"):
        (tmp_path / folder).mkdir()
    (tmp_path / "torch/__init__.py").touch()
    (tmp_path / "torch/version.py").write_text("cuda: Optional[str] = '13.0'\n")
    _, said, _ = doctor(
        ["--deepspeed", "zero2_offload", *words(tmp_path / "run")],
        mounts=(f"mount -t tmpfs -o noexec tmpfs {tmp_path / 'noexec'}",),
        tools=f"{tmp_path}:{os.environ['PATH']}",
        TORCH_EXTENSIONS_DIR=str(tmp_path / "noexec/ops"),
        PYTHONPATH=f"{tmp_path}:{repo}",
        HF_HUB_OFFLINE="1",
    )
    folder = said["op-folder"]
    assert folder["level"] == "fail" and "is mounted noexec" in folder["found"], folder
