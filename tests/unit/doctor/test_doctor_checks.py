"""Each check passes on a sound machine and names the fault of a broken one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness.machine_facts import CARD, CARDS, ETH, FOLDER, GIB, LO, cpu_node, gpu_node, needs

from wikillm.config.load import load
from wikillm.doctor.checks import GROUPS
from wikillm.doctor.facts import UNLIMITED
from wikillm.doctor.needs import needs_of
from wikillm.doctor.questions import CLUSTER_CHECKS, NODE_CHECKS, judge_node, listed

BY_NAME = {check.name: check for check in NODE_CHECKS}


def cards(**fields: Any) -> dict[str, Any]:
    """The second GPU differs."""
    return {"gpus": {"cards": (CARD, replace(CARDS[1], **fields))}}


def run_on(**fields: Any) -> dict[str, Any]:
    """The folder of the run differs."""
    return {"disk": {"run": replace(FOLDER, **fields)}}


def env(**variables: str) -> dict[str, Any]:
    return {"environment": variables}


def disk(**fields: Any) -> dict[str, Any]:
    return {"disk": fields}


# check -> (level, words in the verdict, broken sections of the GPU node, other needs)
Case = tuple[str, str, dict[str, Any], dict[str, Any]]
FAULTS: dict[str, list[Case]] = {
    "python-version": [("fail", "3.13.1", {"software": {"python": "3.13.1"}}, {})],
    "packages-there": [("fail", "deepspeed", {"software": {"packages": {"deepspeed": None}}}, {})],
    "packages-fit": [
        ("fail", "(wanted >=0.19,<0.20)", {"software": {"packages": {"deepspeed": "0.20.1"}}}, {})
    ],
    "torch-build": [
        ("fail", "CPU build", {"software": {"torch_cuda": ""}}, {}),
        ("fail", "not installed", {"software": {"torch_cuda": None}}, {}),
        ("warn", "no GPU is seen", {"gpus": {"cards": ()}}, {}),
    ],
    "driver-cuda": [
        ("fail", "up to CUDA 11.8", {"gpus": {"driver_cuda": "11.8"}}, {}),
        ("warn", "up to CUDA 12.4", {"gpus": {"driver_cuda": "12.4"}}, {}),
    ],
    "gpu-driver": [("fail", "2 NVIDIA devices", {"gpus": {"smi": "failed", "cards": ()}}, {})],
    "gpu-count": [("fail", "slots=2", {}, {"slots": 8}), ("warn", "idle", {}, {"slots": 1})],
    "gpu-visible": [("fail", "CUDA_VISIBLE_DEVICES=1", env(CUDA_VISIBLE_DEVICES="1"), {})],
    "gpu-free": [
        ("warn", "GPU 1: 70000 of 81559", cards(memory_used=70000), {}),
    ],
    "gpu-ecc": [("fail", "GPU 1: 3", cards(ecc=3), {})],
    "gpu-mode": [
        ("fail", "GPU 1", cards(mig=True), {}),
        ("warn", "one slice", cards(mig=True), {"nodes": 1, "slots": 1}),
        ("fail", "Prohibited", cards(compute_mode="Prohibited"), {}),
    ],
    "gpu-bf16": [
        ("fail", "train.precision=fp16", cards(compute_capability=7.0), {}),
        ("warn", "no bf16", cards(compute_capability=7.5), {"precision": "auto"}),
    ],
    "cores": [
        ("warn", "1 cores", {"host": {"cpu_quota": 1.0}}, {}),
        ("warn", "load 90.0", {"host": {"load": 90.0}}, {}),
    ],
    "memory": [
        ("fail", "zero2_offload keeps", {"host": {"cgroup_limit": 8 * GIB, "swap": 0}}, {}),
        ("warn", "about", {"host": {"memory_available": GIB}}, {}),
        ("warn", "16 GiB of it free", {"host": {"cgroup_used": 240 * GIB}}, {}),
    ],
    "open-files": [
        ("warn", "1024", {"host": {"open_files": 1024}}, {}),
        ("fail", "64", {"host": {"open_files": 64}}, {}),
    ],
    "locked-memory": [("fail", "8388608", {"host": {"locked_memory": 8 << 20}}, {})],
    "shared-memory": [
        ("fail", "--shm-size", {"host": {"shm_free": 64 << 20}}, {}),
        ("warn", "no /dev/shm", {"host": {"shm_free": None}}, {}),
    ],
    "toolchain": [
        ("fail", "C++", {"compiler": {"cxx": ""}}, {}),
        ("warn", "C++", {"compiler": {"cxx": ""}}, {"recipe": ""}),
        ("fail", "python3-dev", {"compiler": {"has_headers": False}}, {}),
        ("fail", "missing: ninja", {"compiler": {"ninja": ""}}, {}),
    ],
    "nvcc": [
        ("fail", "CUDA 12.8 toolkit", {"compiler": {"nvcc": ""}}, {}),
        ("fail", "nvcc 11.8", {"compiler": {"nvcc_cuda": "11.8"}}, {}),
    ],
    "op-folder": [
        ("fail", "cannot be written", {"compiler": {"is_writable": False}}, {}),
        ("fail", "noexec", {"compiler": {"is_executable": False}}, {}),
    ],
    "run-folder": [
        ("fail", "/srv/runs", run_on(is_writable=False), {}),
        ("warn", "12 inodes free", run_on(inodes_free=12), {}),
        ("warn", "tmpfs", run_on(kind="tmpfs"), {}),
        ("warn", "own layer", run_on(kind="overlay"), {}),
    ],
    "checkpoint-room": [
        ("fail", "not one fits", run_on(free=GIB), {}),
        ("warn", "4 checkpoints", run_on(free=30 * GIB), {}),
        (
            "warn",
            "5 GiB more",
            disk(run=replace(FOLDER, free=8 * GIB), checkpoints_go=5 * GIB),
            {},
        ),
        (
            "fail",
            "train.save_total_limit=1",
            disk(run=replace(FOLDER, free=GIB), checkpoints_stay=GIB),
            {},
        ),
    ],
    "store-room": [("warn", "data.store", disk(store=replace(FOLDER, free=GIB // 2)), {})],
    "data-source": [("fail", "does not exist", disk(data_error="data.path does not exist."), {})],
    "batch": [("fail", "cannot be split", {}, {"batch_error": "cannot be split"})],
    "hostname": [
        ("fail", "gpu1 is 127.0.1.1", {"network": {"hostname_addresses": ("127.0.1.1",)}}, {}),
        ("fail", "unknown", {"network": {"hostname_addresses": ()}}, {}),
    ],
    "master-name": [
        ("fail", "--master-addr", {"network": {"master_addresses": ("127.0.0.1",)}}, {}),
        ("fail", "unknown", {"network": {"master_addresses": ()}}, {}),
    ],
    "card": [
        ("fail", "no route", {"network": {"route": None, "cards": (LO,)}}, {}),
        (
            "warn",
            "1000 Mbit/s",
            {"network": {"cards": (LO, replace(ETH, speed=1000)), "infiniband": ()}},
            {},
        ),
    ],
    "card-named": [
        ("fail", "NCCL_SOCKET_IFNAME=ib0", env(NCCL_SOCKET_IFNAME="ib0"), {}),
        ("fail", "GLOO_SOCKET_IFNAME=eth", env(GLOO_SOCKET_IFNAME="eth"), {}),
        ("warn", "2 cards", {"network": {"cards": (LO, ETH, replace(ETH, name="docker0"))}}, {}),
    ],
    "master-port": [("warn", "--master-port 29501", {"network": {"port_error": "in use"}}, {})],
    **{
        f"reach-{name}": [("warn", "timed out", {"connectivity": {name: "timed out"}}, {})]
        for name in ("huggingface", "hf-mirror", "modelscope", "swanlab")
    },
    "foreign-variables": [
        ("fail", "train.precision=fp16", env(ACCELERATE_MIXED_PRECISION="fp16"), {}),
        ("fail", "TORCHDYNAMO_DISABLE=1", env(TORCHDYNAMO_DISABLE="1"), {"compiles": True}),
    ],
    "forwarded": [("warn", "HF_TOKEN", {}, {"not_forwarded": ("HF_TOKEN",)})],
}


def test_there_is_a_fault_for_every_check() -> None:
    assert set(FAULTS) == set(BY_NAME)
    names = [name for _, name, _ in listed()]
    assert len(set(names)) == len(names) == len(NODE_CHECKS) + len(CLUSTER_CHECKS) + 1
    for group, name, about in listed():
        assert group in GROUPS and about.endswith("."), (name, about)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_sound_machine_passes(name: str) -> None:
    assert BY_NAME[name].judge(gpu_node(), needs()).level == "ok"
    assert BY_NAME[name].judge(cpu_node(), needs(nodes=1)).level in ("ok", "skip")


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in FAULTS.items() for case in cases]
)
def test_a_fault_is_named(name: str, case: Case) -> None:
    level, words, sections, more = case
    said = BY_NAME[name].judge(gpu_node(**sections), needs(**more))
    assert said.level == level, said
    assert words in f"{said.found} {said.why} {said.fix}", said
    assert said.why and "{" not in said.why + said.fix, said


def test_a_section_that_hangs_is_one_failure() -> None:
    facts = replace(gpu_node(), disk=None, errors={"disk": "no answer within 15 s"})
    said = judge_node("gpu1", facts, needs())
    assert [verdict.name for verdict in said if verdict.level == "fail"] == ["facts-disk"]
    of_disk = {check.name for check in NODE_CHECKS if check.section == "disk"}
    assert {verdict.level for verdict in said if verdict.name in of_disk} == {"skip"}


def test_unlimited_is_no_limit() -> None:
    facts = gpu_node(host={"open_files": UNLIMITED})
    for name in ("open-files", "locked-memory"):
        assert BY_NAME[name].judge(facts, needs()).found == "unlimited"


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
def test_needs_of_a_run_with_shared_sequences(slots: int, said: str) -> None:
    found = needs_of(load("long-7b-128k", ["data.path=corpus.jsonl"]), nodes=1, slots=slots)
    assert found.batch_error.startswith(said) and bool(found.batch_error) is bool(said)
