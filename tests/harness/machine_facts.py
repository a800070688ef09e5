"""Facts about two sound machines, as `wikillm.doctor` would gather them: one with GPUs, one without. Tests break one thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wikillm.doctor.facts import (
    UNLIMITED,
    Compiler,
    Disk,
    GpuCard,
    Gpus,
    Host,
    Network,
    Nic,
    NodeFacts,
    Place,
    Software,
)
from wikillm.doctor.needs import Needs

GIB = 2**30
CARD = GpuCard(
    0, "NVIDIA H100 80GB HBM3", memory_total=81559, memory_used=4, compute_capability=9.0, persistence=True,
    power_limit=700.0, power_default=700.0, ecc_now=0, ecc_ever=0, row_remap="", mig=False, compute_mode="Default",
    temperature=31, throttle=1, pcie_width=16, pcie_width_max=16,
)  # fmt: skip
CARDS = (CARD, replace(CARD, index=1))
PLACE = Place("runs/x", "/srv/runs", True, 2000 * GIB, 10_000_000, "nfs4", 5e8)
LO = Nic("lo", True, 65536, None, ("127.0.0.1", "::1"))
ETH = Nic("eth0", True, 9000, 100_000, ("10.0.0.1",))


def gpu_node(**sections: dict[str, Any]) -> NodeFacts:
    """A sound node with two H100, InfiniBand and several neighbours; `sections` replaces fields: host={"cores": 1}."""
    sound = NodeFacts(
        software=Software(
            "3.11.9", "/srv/wikillm/.venv/bin/python", {"torch": "2.13.0", "deepspeed": "0.19.8"},
            {"torch": ">=2.11", "deepspeed": ">=0.19,<0.20"}, "12.8", "UTF-8", "/srv/wikillm", "0123abcd",
        ),
        gpus=Gpus(2, "", "580.95.05", "13.0", CARDS, (), ((0, 1, "NV18"),)),
        host=Host(
            "gpu1", "boot net", "ada", 64, 64.0, 512 * GIB, 500 * GIB, 8 * GIB, 0, 256 * GIB, GIB, 1.0, 65536, UNLIMITED,
            100_000, 64 * GIB, 64 * GIB, (), "performance", True,
        ),
        compiler=Compiler(
            "/usr/bin/c++", "12.2.0", True, "/usr/bin/ninja", "/usr/local/cuda/bin/nvcc", "12.8", "/var/cache/ops", True,
            True, (),
        ),
        disk=Disk(PLACE, PLACE, False, PLACE, {"corpus.jsonl": "aa11"}, GIB, ""),
        network=Network(
            "gpu1", ("10.0.0.1",), (LO, ETH), "gpu1", ("10.0.0.1",), ("eth0", "10.0.0.1"), 29500, "",
            (("mlx5_0:1", "ACTIVE"),), (),
        ),
        hubs={"huggingface": "", "hf-mirror": "", "modelscope": "", "swanlab": ""},
        environment={
            "CUDA_VISIBLE_DEVICES": "0,1", "https_proxy": "http://proxy:3128", "no_proxy": "localhost,gpu1",
            "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)",
            "SLURM_JOB_NODELIST": "gpu[1-2]",
        },
    )  # fmt: skip
    return broken(sound, **sections)


def cpu_node(**sections: dict[str, Any]) -> NodeFacts:
    """A sound machine without GPU, on its own."""
    sound = gpu_node(
        software={"torch_cuda": ""},
        gpus={
            "hardware": 0,
            "smi": "nvidia-smi is not installed",
            "driver": "",
            "driver_cuda": "",
            "cards": (),
            "links": (),
        },
        network={"infiniband": ()},
    )
    return broken(replace(sound, environment={}), **sections)


def broken(facts: NodeFacts, **sections: dict[str, Any]) -> NodeFacts:
    """`facts` with some fields of some sections replaced; an environment is added to."""
    parts: dict[str, Any] = {}
    for name, fields in sections.items():
        old = getattr(facts, name)
        parts[name] = {**old, **fields} if isinstance(old, dict) else replace(old, **fields)
    return replace(facts, **parts)


def needs(**more: Any) -> Needs:
    """Two nodes with two processes each, ZeRO-2 with offload: most questions arise."""
    asked: dict[str, Any] = {
        "nodes": 2, "slots": 2, "master": "gpu1", "precision": "bf16", "recipe": "zero2_offload", "offload": True,
        "parameters": 10**9, "checkpoint": 16 * 10**9, "least_checkpoint": 12 * 10**9, "checkpoints_kept": 4,
        "host_memory": 16 * 10**9, "traffic": 10**9,
    }  # fmt: skip
    return Needs(**{**asked, **more})
