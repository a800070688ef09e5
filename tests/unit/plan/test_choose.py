"""The planner's candidates: settings that it keeps, its ranking, its refusals and proposals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wikillm.config.load import load
from wikillm.core.errors import ConfigError
from wikillm.plan.choose import Candidate, Machine, choose, settings_of
from wikillm.plan.gpus import GPU_NAMES, find_gpu
from wikillm.plan.report import to_json
from wikillm.plan.workload import describe_workload

GIB = 2**30
ADAMW = ("train.optimizer=adamw", "train.max_grad_norm=1")


def machine(gpu: str = "h100", nodes: int = 1, per_node: int = 8, host_gib: int = 1024) -> Machine:
    return Machine(find_gpu(gpu), nodes, per_node, host_gib * GIB)


def chosen(run: str, *words: str, on: Machine, tokens: int | None = None) -> list[Candidate]:
    resolved = load(run, words)
    return choose(resolved, describe_workload(resolved, ranks=on.ranks, train_tokens=tokens), on)


def test_where_only_offload_fits_a_plan_with_muon_proposes_adamw() -> None:
    one = machine(per_node=1)
    with pytest.raises(ConfigError, match="7b does not fit") as refused:
        chosen("pretrain-7b", on=one)
    words = (refused.value.fix or "").splitlines()[0].split()
    assert words[-2:] == list(ADAMW)
    resolved = load("pretrain-7b", words[2:], deepspeed=words[1])
    best = choose(resolved, describe_workload(resolved, ranks=1), one)[0]
    assert best.fits and best.strategy.offload_optimizer


def test_72b_on_one_node_is_refused_with_ways_that_fit() -> None:
    with pytest.raises(ConfigError, match="72b does not fit on 1 x 8 h100") as refused:
        chosen("pretrain-72b", on=machine())
    assert "host memory per node" in (refused.value.got or "")
    proposals = (refused.value.fix or "").splitlines()
    assert "--nodes 2" in proposals[0] and "--host-memory" in proposals[-1]
    words = proposals[0].split()
    two_nodes = chosen("pretrain-72b", on=machine(words[1], int(words[3]), int(words[5])))
    assert two_nodes[0].fits and two_nodes[0].strategy.stage == 3


@pytest.mark.parametrize(
    ("run", "nodes", "per_node", "recipe"),
    [
        ("wiki-zh-120m", 1, 1, "zero0"),  # one GPU has no traffic
        ("pretrain-0.5b", 1, 8, "zero1"),  # the stage with the least traffic
        ("pretrain-3b", 1, 8, "zero1"),
        ("pretrain-72b", 8, 8, "zero3"),
    ],
)
def test_the_preferred_recipe_of_each_machine(
    run: str, nodes: int, per_node: int, recipe: str
) -> None:
    best = chosen(run, on=machine(nodes=nodes, per_node=per_node))[0].strategy
    assert (best.recipe, best.offloads) == (recipe, False)
    assert best.checkpointing == "none" or recipe == "zero3"


def test_offload_ranks_behind_all_that_fits_and_memory_stays_free() -> None:
    for nodes in (1, 8):
        ways = [way for way in chosen("pretrain-7b", *ADAMW, on=machine(nodes=nodes)) if way.fits]
        # zero3_plus, which changes the arithmetic, comes last.
        tiers = [2 if w.strategy.quantized else int(w.strategy.offload_optimizer) for w in ways]
        assert tiers == sorted(tiers) and not tiers[0] and (tiers[-1] == 2) == (nodes > 1)
        assert all(way.memory.total <= 0.92 * find_gpu("h100").memory for way in ways)


def test_settings_of_the_user_are_kept() -> None:
    words = (
        "train.per_device_train_batch_size=2",
        "train.gradient_checkpointing=true",
        "deepspeed.config=zero2",
    )
    (only,) = chosen("pretrain-7b", *words, on=machine())
    assert (only.strategy.recipe, only.strategy.micro, only.strategy.checkpointing) == (
        "zero2",
        2,
        "full",
    )


def test_the_error_for_a_setting_that_does_not_fit_proposes_one_that_fits() -> None:
    with pytest.raises(ConfigError) as refused:
        chosen("pretrain-7b", "deepspeed.config=zero0", on=machine())
    words = (refused.value.fix or "").removeprefix("--deepspeed ").split()
    (again,) = chosen("pretrain-7b", f"deepspeed.config={words[0]}", *words[1:], on=machine())
    assert again.fits


def test_a_proposed_machine_fits() -> None:
    best = chosen("pretrain-7b", on=machine("a100"))[0]
    words = settings_of(best.strategy)
    again = load("pretrain-7b", words[2:], deepspeed=words[1])
    (kept,) = choose(again, describe_workload(again, ranks=8), machine("a100"))
    assert kept == best


def test_more_ranks_than_sequences_are_refused_with_a_batch_that_divides() -> None:
    with pytest.raises(ConfigError, match="cannot be split over 512 ranks") as refused:
        chosen("wiki-zh-120m", on=machine(nodes=64))
    word = (refused.value.fix or "").splitlines()[0]
    assert chosen("wiki-zh-120m", word, on=machine(nodes=64))[0].fits


def test_a_gpu_without_bf16_plans_fp16_and_refuses_bf16() -> None:
    assert chosen("wiki-zh-120m", on=machine("v100"))[0].strategy.precision == "fp16"
    with pytest.raises(ConfigError, match="no bf16"):
        chosen("wiki-zh-120m", "train.precision=bf16", on=machine("v100"))


def test_the_error_for_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as refused:
        find_gpu("H1000")
    assert refused.value.fix == "--gpu h100"
    assert find_gpu("NVIDIA H100") == find_gpu("h100")
    assert all(find_gpu(name).memory > 10 * GIB for name in GPU_NAMES)


@pytest.mark.parametrize(
    ("said", "name", "gib", "tflops"),
    [
        ("4090", "rtx4090", 24, 165.2),
        ("NVIDIA GeForce RTX 4090 D", "rtx4090d", 24, 147.0),
        ("4090d", "rtx4090d", 24, 147.0),
        ("NVIDIA RTX A6000", "a6000", 48, 154.8),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada", 48, 364.2),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro6000", 96, 503.8),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx-pro6000-maxq", 96, 438.9),
        ("AMD Instinct MI300X", "mi300x", 192, 1307.4),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb", 40, 312.0),
        ("A100 80GB PCIe", "a100-pcie", 80, 312.0),
        ("NVIDIA H100 80GB HBM3", "h100", 80, 989.5),
        ("Tesla V100-SXM2-32GB", "v100", 32, 125.0),
    ],
)
def test_a_gpu_is_found_by_its_common_name_and_its_drivers_name(
    said: str, name: str, gib: int, tflops: float
) -> None:
    gpu = find_gpu(said)
    assert (gpu.name, gpu.peak) == (name, tflops * 1e12)
    assert 0.88 * gib <= gpu.memory / GIB < gib


@pytest.mark.parametrize(
    "said", ["Tesla V100-SXM2-16GB", "RTX 4090 48GB", "H100 PCIe 40GB", "TITAN X", "MI250", ""]
)
def test_a_gpu_of_another_size_or_kind_is_unknown(said: str) -> None:
    with pytest.raises(ConfigError, match="knows no GPU") as refused:
        find_gpu(said)
    assert "--gpu-memory" in (refused.value.got or "") and "--gpu" in (refused.value.fix or "")


def test_hours_and_cost_follow_from_the_step() -> None:
    resolved = load("pretrain-0.5b")
    on = replace(machine(), price=2.0)
    workload = describe_workload(resolved, ranks=8)
    plan = to_json(resolved.config.train, workload, on, choose(resolved, workload, on))
    best = plan["choices"][0]
    assert best["hours"] == pytest.approx(plan["max_steps"] * best["step_seconds"]["total"] / 3600)
    assert best["cost"] == pytest.approx(best["hours"] * 16)
    assert best["tokens_per_second"] * best["hours"] * 3600 == pytest.approx(plan["total_tokens"])
    assert best["mfu"] <= plan["assumed_mfu"] * 1.0001
    # Weights and moments in float32; Muon's matrices, most of this model, have one moment.
    matrices = 357_826_560
    checkpoint = 12 * plan["parameters"] - 4 * matrices
    assert plan["disk_bytes"]["checkpoint"] == pytest.approx(checkpoint, rel=0.01)


def test_tokens_come_from_the_horizon_or_from_the_user() -> None:
    def made(*words: str, tokens: int | None = None, run: str = "wiki-zh-120m") -> tuple[int, int]:
        workload = describe_workload(load(run, words), ranks=8, train_tokens=tokens)
        return workload.train_tokens, workload.max_steps

    assert made("--max_steps=100") == (100 * 131_072, 100)
    assert made(tokens=131_072 * 50 + 1) == (131_072 * 50 + 1, 100)  # two epochs
    assert made()[0] == 20 * 123_426_304


@pytest.mark.parametrize("stage", ['"two"', "4", "true", "-1"])
def test_an_invalid_value_in_the_users_json_is_refused_with_its_line(
    stage: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(f'{{"zero_optimization": {{\n"stage": {stage}}}}}')
    with pytest.raises(ConfigError) as refused:
        chosen("pretrain-0.5b", f"deepspeed.config={file}", on=machine())
    assert f"{file}:2" in (refused.value.got or "")
