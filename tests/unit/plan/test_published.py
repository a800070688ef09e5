"""The plan compared with published throughput, and formulas that this comparison corrected."""

from __future__ import annotations

import importlib
import re
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wikillm.plan.choose import Machine
from wikillm.plan.communication import communication_per_step
from wikillm.plan.gpus import find_gpu
from wikillm.plan.roofline import default_mfu
from wikillm.plan.storage import storage_time
from wikillm.plan.strategy import Strategy, with_recipe
from wikillm.plan.time import step_time


@pytest.fixture
def published(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(repo), *sys.path])  # which the script changes on import
    return importlib.import_module("benchmarks.published")


def test_the_plan_is_near_published_throughput(published: Any) -> None:
    """216 rows of A100s and H100s, 1 to 64 nodes, 125M to 70B; no constant is of a single row."""
    rows = published.published()
    short = [row for row in rows if row.length <= published.SHORT]
    errors = [abs(row.error) for row in short]
    assert len(rows) == 216 and len(short) == 151
    assert statistics.median(errors) < 0.08
    assert sum(error <= 0.15 for error in errors) >= 0.88 * len(short)
    for gpu in ("a100", "a100-40gb", "h100"):
        assert abs(statistics.mean(row.error for row in short if row.gpu == gpu)) < 0.06, gpu


def test_a_ring_over_nodes_uses_every_card_of_a_node(published: Any) -> None:
    """A 70B model on 4 nodes with micro-batches of 2: were all bytes of a GPU to cross its own
    card, gathering alone would take twice the published step."""
    rows = published.published()
    (row,) = (r for r in rows if (r.model, r.gpus, r.gpu) == ("mpt-70b", 32, "h100"))
    assert row.micro == 2 and abs(row.error) < 0.15
    workload = published.Workload(published._model("mpt-70b"), 50368, 2048)
    plain = Strategy("ddp", 0, 32, 8, 2, 16, "bf16", checkpointing="full")
    traffic = communication_per_step(workload, with_recipe(plain, "zero3", 8192))
    assert traffic.between_nodes == pytest.approx(traffic.inside_node / 8)
    seconds_of_a_step = 16 * 2 * 2048 / row.speed
    assert traffic.inside_node / find_gpu("h100").between_nodes > 1.9 * seconds_of_a_step


def test_the_latency_of_many_ranks_decides_against_gathering_every_layer(published: Any) -> None:
    """One micro-step of 125M on 512 GPUs: 39 rings of ZeRO-3 take longer than the computation."""
    workload = published.Workload(published._model("mpt-125m"), 50368, 2048)
    gpu = find_gpu("h100")

    def waits(recipe: str, ranks: int) -> float:
        plain = Strategy("ddp", 0, ranks, 8, 4, 1, "bf16")
        made = with_recipe(plain, recipe, 768)
        mfu = default_mfu(workload, made, gpu)
        traffic = communication_per_step(workload, made)
        return step_time(workload, made, traffic, gpu, mfu=mfu).exposed

    assert waits("zero3", 512) > 5 * waits("zero1", 512)
    assert waits("zero3", 8) < waits("zero3", 512) / 20


def test_memory_bandwidth_raises_the_share_of_a_slower_gpu(published: Any) -> None:
    """An A100 has 153 FLOPs per byte of bandwidth, an H100 295: the same model reaches more of its
    peak; with the stock loss or on a GPU with slower memory less."""
    workload = published.Workload(published._model("mpt-1b"), 50368, 2048)
    plain = Strategy("ddp", 0, 8, 8, 8, 1, "bf16")
    h100 = find_gpu("h100")
    reached = default_mfu(workload, plain, h100)
    assert default_mfu(workload, plain, find_gpu("a100")) > 1.2 * reached
    assert default_mfu(workload, replace(plain, loss="stock"), h100) < reached
    assert default_mfu(workload, plain, replace(h100, memory_bandwidth=1e12)) < 0.7 * reached


def test_the_storage_times_of_72b_on_64_nodes() -> None:
    """864 GB: 13.5 GB a node at 2 GB/s, 1.69 GB a GPU at 50 GB/s to the host."""
    times = storage_time(864 * 10**9, Machine(find_gpu("h100"), 64, 8, 0), 8)
    assert times["write"] == times["verify"] == times["load"] == pytest.approx(6.75)
    assert times["copy"] == pytest.approx(0.03375)
    assert times["data_start"] == pytest.approx(0.6e9 / 2e9 + 0.6e9 / 1.5e9)


@pytest.mark.parametrize("page", ["docs/scaling.md", "docs/scaling.zh.md"])
def test_the_documentation_has_the_figures_that_the_commands_print(
    page: str, published: Any, repo: Path
) -> None:
    scaling = importlib.import_module("benchmarks.scaling")
    text = re.sub(" +", " ", (repo / page).read_text(encoding="utf-8"))  # cells are padded
    rows = published.published()
    near = [row for row in rows if row.length <= published.SHORT]
    assert published.said(rows) in text and published.said(near) in text
    for line in published.by_gpus(near):
        assert f"| {' | '.join(line)} |" in text
    for preset, micro, accumulation in scaling.CASES:
        for line in scaling.rows(preset, micro, accumulation):
            assert f"| {' | '.join(line)} |" in text, line


def test_deepspeed_gathers_each_group_of_parameters_at_once() -> None:
    """So `allgather_bucket_size` costs no rings. A DeepSpeed that reads it again fails here."""
    import torch
    from deepspeed import comm
    from deepspeed.runtime.utils import all_gather_dp_groups

    class Gathered(Exception):
        pass

    def gather(into: Any, part: Any, group: Any) -> None:
        raise Gathered(into, part)

    assert hasattr(torch.distributed, "all_gather_into_tensor"), "what DeepSpeed asks for"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "has_all_gather_into_tensor", lambda: True)
        patch.setattr(comm, "get_rank", lambda group: 0)
        patch.setattr(comm, "get_world_size", lambda group: 2)
        patch.setattr(comm, "all_gather_into_tensor", gather)
        with pytest.raises(Gathered) as whole:
            all_gather_dp_groups([[1, 2, 3, 4]], [[[1, 2], [3, 4]]], [None], 1, 1)
    assert whole.value.args == ([1, 2, 3, 4], [1, 2])
