"""Every check says ok on a sound machine, and names what is wrong on one where it is. Facts in, verdict out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness.machine_facts import CARD, CARDS, ETH, GIB, LO, PLACE, cpu_node, gpu_node, needs

from wikillm.config.load import load
from wikillm.doctor.checks.environment import count_nodes
from wikillm.doctor.checks.every import NODE_CHECKS, judge_node, listed
from wikillm.doctor.facts import UNLIMITED, OpLock
from wikillm.doctor.needs import needs_of
from wikillm.doctor.verdict import GROUPS

BY_NAME = {check.name: check for check in NODE_CHECKS}
SECOND = CARDS[1]


def cards(**fields: Any) -> dict[str, Any]:
    """The second GPU differs."""
    return {"gpus": {"cards": (CARD, replace(SECOND, **fields))}}


# check -> (level, words that its verdict must hold, broken sections of the GPU node, other needs)
Case = tuple[str, str, dict[str, Any], dict[str, Any]]
FAULTS: dict[str, list[Case]] = {
    "python-version": [("fail", "3.13.1", {"software": {"python": "3.13.1"}}, {})],
    "packages-there": [("fail", "deepspeed", {"software": {"packages": {"deepspeed": None}}}, {})],
    "packages-fit": [("fail", "deepspeed 0.20.1 (wanted >=0.19,<0.20)", {"software": {"packages": {"deepspeed": "0.20.1"}}}, {})],
    "torch-build": [
        ("fail", "CPU build", {"software": {"torch_cuda": ""}}, {}),
        ("fail", "not installed", {"software": {"torch_cuda": None}}, {}),
        ("warn", "no GPU is seen", {"gpus": {"cards": ()}}, {}),
    ],
    "text-encoding": [("warn", "ANSI_X3.4-1968", {"software": {"encoding": "ANSI_X3.4-1968"}}, {})],
    "driver-cuda": [
        ("fail", "up to CUDA 11.8", {"gpus": {"driver_cuda": "11.8"}}, {}),
        ("warn", "up to CUDA 12.4", {"gpus": {"driver_cuda": "12.4"}}, {}),
    ],
    "gpu-driver": [("fail", "2 NVIDIA devices", {"gpus": {"smi": "couldn't communicate with the NVIDIA driver", "cards": ()}}, {})],
    "gpu-count": [("fail", "slots=2", {}, {"slots": 8}), ("warn", "idle", {}, {"slots": 1})],
    "gpu-visible": [("fail", "CUDA_VISIBLE_DEVICES=1", {"environment": {"CUDA_VISIBLE_DEVICES": "1"}}, {})],
    "gpu-kind": [("warn", "NVIDIA A100", cards(name="NVIDIA A100-SXM4-80GB", memory_total=81920), {})],
    "gpu-memory": [("warn", "GPU 1: 70000 of 81559", cards(memory_used=70000), {})],
    "gpu-processes": [("warn", "python (pid 4242", {"gpus": {"processes": ((4242, "python", 70000),)}}, {})],
    "gpu-ecc": [("fail", "GPU 1: 3", cards(ecc_now=3), {}), ("warn", "GPU 1: 7", cards(ecc_ever=7), {})],
    "gpu-rows": [("fail", "GPU 1: pending", cards(row_remap="pending"), {}), ("fail", "failed", cards(row_remap="failed"), {})],
    "gpu-slowed": [("warn", "hardware slowdown", cards(throttle=0x8), {}), ("warn", "91 degrees", cards(temperature=91), {})],
    "gpu-power": [("warn", "GPU 1: 400 of 700 W", cards(power_limit=400.0), {})],
    "gpu-persistence": [("warn", "GPU 1", cards(persistence=False), {})],
    "gpu-mig": [("fail", "GPU 1", cards(mig=True), {}), ("warn", "one slice", cards(mig=True), {"nodes": 1, "slots": 1})],
    "gpu-mode": [
        ("fail", "Prohibited", cards(compute_mode="Prohibited"), {}),
        ("warn", "Exclusive_Process", cards(compute_mode="Exclusive_Process"), {}),
    ],
    "gpu-bf16": [
        ("fail", "train.precision=fp16", cards(compute_capability=7.0), {}),
        ("warn", "no bf16", cards(compute_capability=7.5), {"precision": "auto"}),
    ],
    "gpu-links": [("warn", "0-1 SYS", {"gpus": {"links": ((0, 1, "SYS"),)}}, {})],
    "gpu-pcie": [("warn", "GPU 1: x4 of x16", cards(pcie_width=4), {})],
    "cores": [("warn", "1 cores", {"host": {"cpu_quota": 1.0}}, {})],
    "load": [("warn", "load 90.0", {"host": {"load": 90.0}}, {})],
    "governor": [("warn", "powersave", {"host": {"governor": "powersave"}}, {})],
    "memory": [
        ("fail", "zero2_offload keeps", {"host": {"cgroup_limit": 8 * GIB, "swap": 0}}, {}),
        ("warn", "about", {"host": {"memory_available": GIB}}, {}),
    ],
    "container-memory": [("warn", "240 GiB of 256 GiB", {"host": {"cgroup_used": 240 * GIB}}, {})],
    "swapping": [("warn", "60 GiB of 64 GiB", {"host": {"swap": 64 * GIB, "swap_used": 60 * GIB}}, {})],
    "open-files": [("warn", "1024", {"host": {"open_files": 1024}}, {}), ("fail", "64", {"host": {"open_files": 64}}, {})],
    "locked-memory": [("fail", "8388608", {"host": {"locked_memory": 8 << 20}}, {})],
    "process-limit": [("fail", "100", {"host": {"processes": 100}}, {})],
    "shared-memory": [
        ("fail", "--shm-size", {"host": {"shm_free": 64 << 20}}, {}),
        ("warn", "no /dev/shm", {"host": {"shm_free": None}}, {}),
    ],
    "shared-memory-leftovers": [
        ("warn", "rm /dev/shm/nccl-Xy", {"host": {"shm_leftovers": (("nccl-Xy", 33 << 20),)}}, {})
    ],
    "clock-synchronised": [("warn", "not synchronised", {"host": {"clock_synchronised": False}}, {})],
    "cxx": [("fail", "apt-get install g++", {"compiler": {"cxx": ""}}, {}), ("warn", "none", {"compiler": {"cxx": ""}}, {"recipe": ""})],
    "python-headers": [("fail", "python3-dev", {"compiler": {"has_headers": False}}, {})],
    "ninja": [("fail", "pip install ninja", {"compiler": {"ninja": ""}}, {})],
    "nvcc": [
        ("fail", "CUDA 12.8 toolkit", {"compiler": {"nvcc": ""}}, {}),
        ("fail", "nvcc 11.8", {"compiler": {"nvcc_cuda": "11.8"}}, {}),
    ],
    "op-folder": [
        ("fail", "cannot be written", {"compiler": {"is_writable": False}}, {}),
        ("fail", "noexec", {"compiler": {"is_executable": False}}, {}),
    ],
    "op-locks": [
        ("fail", "rm /c/op/lock", {"compiler": {"locks": (OpLock("/c/op/lock", 5000.0, False),)}}, {}),
        ("warn", "rm /c/op/lock", {"compiler": {"locks": (OpLock("/c/op/lock", 5.0, False),)}}, {}),
    ],
    "run-folder": [("fail", "/srv/runs", {"disk": {"run": replace(PLACE, is_writable=False)}}, {})],
    "checkpoint-room": [
        ("fail", "not one fits", {"disk": {"run": replace(PLACE, free=GIB)}}, {}),
        ("warn", "4 checkpoints", {"disk": {"run": replace(PLACE, free=30 * GIB)}}, {}),
        ("warn", "5 GiB more", {"disk": {"run": replace(PLACE, free=8 * GIB), "checkpoints_go": 5 * GIB}}, {}),
        ("fail", "train.save_total_limit=1", {"disk": {"run": replace(PLACE, free=GIB), "checkpoints_stay": GIB}}, {}),
    ],
    "store-room": [("warn", "data.store", {"disk": {"store": replace(PLACE, free=GIB // 2)}}, {})],
    "inodes": [("warn", "12 free", {"disk": {"run": replace(PLACE, inodes_free=12)}}, {})],
    "save-speed": [("warn", "per checkpoint", {"disk": {"run": replace(PLACE, bytes_per_second=1e6)}}, {})],
    "lasting": [("warn", "tmpfs", {"disk": {"run": replace(PLACE, kind="tmpfs")}}, {}), ("warn", "own layer", {"disk": {"run": replace(PLACE, kind="overlay")}}, {})],
    "shared-kind": [("warn", "ext4", {"disk": {"run": replace(PLACE, kind="ext4")}}, {})],
    "temporary-room": [
        ("warn", "TMPDIR", {"disk": {"temporary": replace(PLACE, free=1000)}}, {}),
        ("fail", "TMPDIR", {"disk": {"temporary": replace(PLACE, is_writable=False)}}, {}),
    ],
    "data-source": [
        ("fail", "does not exist", {"disk": {"data_error": "data.path does not exist."}}, {}),
    ],
    "batch": [("fail", "cannot be split", {}, {"batch_error": "cannot be split"})],
    "hostname": [
        ("fail", "gpu1 is 127.0.1.1", {"network": {"hostname_addresses": ("127.0.1.1",)}}, {}),
        ("fail", "unknown", {"network": {"hostname_addresses": ()}}, {}),
    ],
    "master-name": [
        ("fail", "--master-addr", {"network": {"master_addresses": ("127.0.0.1",)}}, {}),
        ("fail", "unknown", {"network": {"master_addresses": ()}}, {}),
    ],
    "card": [("fail", "no route", {"network": {"route": None, "nics": (LO,)}}, {})],
    "card-named": [
        ("fail", "NCCL_SOCKET_IFNAME=ib0", {"environment": {"NCCL_SOCKET_IFNAME": "ib0"}}, {}),
        ("fail", "GLOO_SOCKET_IFNAME=eth", {"environment": {"GLOO_SOCKET_IFNAME": "eth"}}, {}),
        ("warn", "2 cards", {"network": {"nics": (LO, ETH, replace(ETH, name="docker0", addresses=("172.17.0.1",)))}}, {}),
    ],
    "link-speed": [("warn", "1000 Mbit/s", {"network": {"nics": (LO, replace(ETH, speed=1000)), "infiniband": ()}}, {})],
    "link-errors": [("warn", "eth0: 2.00%", {"network": {"nics": (LO, replace(ETH, bad_share=0.02))}}, {})],
    "infiniband": [
        ("warn", "mlx5_0:1", {"network": {"infiniband": (("mlx5_0:1", "DOWN"),)}}, {}),
        ("warn", "mlx5_1:1", {"network": {"infiniband": (("mlx5_0:1", "ACTIVE"), ("mlx5_1:1", "INIT"))}}, {}),
    ],
    "master-port": [("warn", "--master-port 29501", {"network": {"port_error": "Address already in use"}}, {})],
    "firewall": [("warn", "ufw", {"network": {"firewalls": ("ufw",)}}, {})],
    "reach-huggingface": [("warn", "timed out", {"hubs": {"huggingface": "timed out"}}, {})],
    "reach-hf-mirror": [("warn", "timed out", {"hubs": {"hf-mirror": "timed out"}}, {})],
    "reach-modelscope": [("warn", "timed out", {"hubs": {"modelscope": "timed out"}}, {})],
    "reach-swanlab": [("warn", "timed out", {"hubs": {"swanlab": "timed out"}}, {})],
    "proxies": [("warn", "without 127.0.0.1, gpu1", {"environment": {"no_proxy": "example.org"}}, {})],
    "launcher-variables": [("warn", "WORLD_SIZE=8", {"environment": {"RANK": "3", "WORLD_SIZE": "8"}}, {})],
    "slowing-variables": [("warn", "NCCL_P2P_DISABLE=1", {"environment": {"NCCL_P2P_DISABLE": "1"}}, {})],
    "foreign-variables": [
        ("fail", "train.precision=fp16", {"environment": {"ACCELERATE_MIXED_PRECISION": "fp16"}}, {}),
        ("fail", "TORCHDYNAMO_DISABLE=1", {"environment": {"TORCHDYNAMO_DISABLE": "1"}}, {"compiles": True}),
    ],
    "preloaded": [
        ("warn", "libjemalloc", {"environment": {"LD_PRELOAD": "libjemalloc.so"}}, {}),
        ("warn", "cuda-11", {"environment": {"LD_LIBRARY_PATH": "/usr/local/cuda-11/lib64"}}, {}),
    ],
    "slurm": [
        ("fail", "node list has 3", {"environment": {"SLURM_JOB_NODELIST": "gpu[1-3]"}}, {}),
        ("fail", "together 4", {"environment": {"SLURM_NTASKS": "16"}}, {}),
        ("fail", "different numbers", {"environment": {"SLURM_TASKS_PER_NODE": "3,1"}}, {}),
    ],
    "forwarded": [("warn", "HF_TOKEN", {}, {"not_forwarded": ("HF_TOKEN",)})],
}  # fmt: skip


def test_there_is_a_fault_for_every_check() -> None:
    assert set(FAULTS) == set(BY_NAME)
    assert len(listed()) >= 80
    assert len({name for _, name, _ in listed()}) == len(listed())


@pytest.mark.parametrize("name", BY_NAME)
def test_a_sound_machine_passes(name: str) -> None:
    check = BY_NAME[name]
    levels = [check.judge(gpu_node(), needs()).level, check.judge(cpu_node(), needs(nodes=1)).level]
    assert levels[0] == "ok" and levels[1] in ("ok", "skip"), levels


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in FAULTS.items() for case in cases]
)
def test_a_fault_is_named(name: str, case: Case) -> None:
    level, words, sections, more = case
    said = BY_NAME[name].judge(gpu_node(**sections), needs(**more))
    assert said.level == level, said
    assert words in f"{said.found} {said.why} {said.fix}", said
    assert said.why or name == "batch"


def test_checks_are_explained_and_grouped() -> None:
    for group, name, about in listed():
        assert group in GROUPS and about.endswith("."), (name, about)


def test_a_section_that_hangs_is_one_failure() -> None:
    facts = replace(gpu_node(), disk=None, errors={"disk": "no answer within 15 s"})
    said = judge_node("gpu1", facts, needs())
    assert [v.name for v in said if v.level == "fail"] == ["facts-disk"]
    assert {v.level for v in said if BY_NAME.get(v.name) and BY_NAME[v.name].section == "disk"} == {
        "skip"
    }


def test_unlimited_is_no_limit() -> None:
    facts = gpu_node(host={"open_files": UNLIMITED, "processes": UNLIMITED})
    for name in ("open-files", "process-limit", "locked-memory"):
        assert BY_NAME[name].judge(facts, needs()).found == "unlimited"


@pytest.mark.parametrize(
    ("text", "count"),
    [("gpu1", 1), ("gpu[01-03,07],login", 5), ("a,b,c", 3), ("n[1-2]x,m[5]", 3), ("", 0)],
)
def test_slurm_node_lists(text: str, count: int) -> None:
    assert count_nodes(text) == count


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("eth", "ok"),
        ("=eth0", "ok"),
        ("=eth", "fail"),
        ("^lo", "ok"),
        ("^lo,eth", "fail"),
        ("ib,eth", "ok"),
        ("ib", "fail"),
    ],
)
def test_nccl_names_cards_by_prefix(value: str, level: str) -> None:
    facts = gpu_node(environment={"NCCL_SOCKET_IFNAME": value})
    assert BY_NAME["card-named"].judge(facts, needs()).level == level


@pytest.mark.parametrize(
    ("slots", "said"), [(8, ""), (6, "sequence_parallel_size=4 does not divide the 6 ranks")]
)
def test_what_a_run_with_shared_sequences_needs(slots: int, said: str) -> None:
    found = needs_of(load("long-7b-128k", ["data.path=corpus.jsonl"]), nodes=1, slots=slots)
    assert found.batch_error.startswith(said) and bool(found.batch_error) is bool(said)
