"""Facts about two healthy machines as `wikillm.doctor` collects them, with and without GPUs.

Tests break one thing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wikillm.doctor.facts import (
    UNLIMITED,
    CompilerFacts,
    DiskFacts,
    FolderFacts,
    GpuCard,
    GpuFacts,
    HostFacts,
    NetworkCard,
    NetworkFacts,
    NodeFacts,
    SoftwareFacts,
)
from wikillm.doctor.needs import Needs

GIB = 2**30
CARD = GpuCard(
    0,
    "NVIDIA H100 80GB HBM3",
    memory_total=81559,
    memory_used=4,
    compute_capability=9.0,
    ecc=0,
    mig=False,
    compute_mode="Default",
)
CARDS = (CARD, replace(CARD, index=1))
FOLDER = FolderFacts("runs/x", "/srv/runs", True, 2000 * GIB, 10_000_000, "nfs4")
LO = NetworkCard("lo", True, 65536, None, ("127.0.0.1", "::1"))
ETH = NetworkCard("eth0", True, 9000, 100_000, ("10.0.0.1",))


def gpu_node(**sections: dict[str, Any]) -> NodeFacts:
    """A sound node with two H100, InfiniBand and neighbours; host={"cores": 1} replaces a field."""
    sound = NodeFacts(
        software=SoftwareFacts(
            python="3.11.9",
            executable="/srv/wikillm/.venv/bin/python",
            packages={"torch": "2.13.0", "deepspeed": "0.19.8"},
            ranges={"torch": ">=2.11", "deepspeed": ">=0.19,<0.20"},
            torch_cuda="12.8",
            code_folder="/srv/wikillm",
            code_digest="0123abcd",
        ),
        gpus=GpuFacts(2, "", "580.95.05", "13.0", CARDS),
        host=HostFacts(
            hostname="gpu1",
            identity="boot net",
            user="ada",
            cores=64,
            cpu_quota=64.0,
            load=1.0,
            memory=512 * GIB,
            memory_available=500 * GIB,
            swap=8 * GIB,
            cgroup_limit=256 * GIB,
            cgroup_used=GIB,
            open_files=65536,
            locked_memory=UNLIMITED,
            shm_free=64 * GIB,
        ),
        compiler=CompilerFacts(
            cxx="/usr/bin/c++",
            has_headers=True,
            ninja="/usr/bin/ninja",
            nvcc="/usr/local/cuda/bin/nvcc",
            nvcc_cuda="12.8",
            folder="/var/cache/ops",
            is_writable=True,
            is_executable=True,
        ),
        disk=DiskFacts(FOLDER, FOLDER, False, {"corpus.jsonl": "aa11"}, GIB, ""),
        network=NetworkFacts(
            hostname="gpu1",
            hostname_addresses=("10.0.0.1",),
            cards=(LO, ETH),
            master="gpu1",
            master_addresses=("10.0.0.1",),
            route=("eth0", "10.0.0.1"),
            master_port=29500,
            port_error="",
            infiniband=(("mlx5_0:1", "ACTIVE"),),
        ),
        connectivity={"huggingface": "", "hf-mirror": "", "modelscope": "", "swanlab": ""},
        environment={"CUDA_VISIBLE_DEVICES": "0,1"},
    )
    return broken(sound, **sections)


def cpu_node() -> NodeFacts:
    """A sound machine without GPU, on its own."""
    sound = gpu_node(software={"torch_cuda": ""}, network={"infiniband": ()})
    return replace(sound, gpus=GpuFacts(0, "nvidia-smi is not installed"), environment={})


def broken(facts: NodeFacts, **sections: dict[str, Any]) -> NodeFacts:
    """`facts` with some fields of some sections replaced; an environment is added to."""
    parts: dict[str, Any] = {}
    for name, fields in sections.items():
        old = getattr(facts, name)
        parts[name] = {**old, **fields} if isinstance(old, dict) else replace(old, **fields)
    return replace(facts, **parts)


def needs(**more: Any) -> Needs:
    """Two nodes with two processes each, ZeRO-2 with offload: most questions arise."""
    sound = Needs(
        nodes=2,
        slots=2,
        precision="bf16",
        recipe="zero2_offload",
        offload=True,
        checkpoint=16 * 10**9,
        least_checkpoint=12 * 10**9,
        checkpoints_kept=4,
        host_memory=16 * 10**9,
        traffic=10**9,
    )
    return replace(sound, **more)
