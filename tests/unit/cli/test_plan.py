"""`wikillm plan` on the command line: what it prints, and that what is wrong is refused."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest

from wikillm.cli.main import main


def test_says_that_it_estimates_and_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "pretrain-7b", "--nodes", "2", "--price", "2.5"]) == 0
    shown = capsys.readouterr().out
    assert "no figure here was measured on a GPU" in shown
    command = shown.splitlines()[-1].split()
    launch = "run it wikillm launch hostfile --hostfile hosts --go --config pretrain-7b --deepspeed"
    assert command[: len(launch.split())] == launch.split()
    assert "cost" in shown and "lr at step 1: 0" in shown


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "--tokens", "1B", "--gpus-per-node", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    shown = (plan["corpus_tokens"], plan["gpus_per_node"], len(plan["learning_rate"]))
    assert shown == (10**9, 2, 5)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--gpu", "h1000"], "--gpu h100"),
        (["--nodes", "0"], "--nodes: '0' is not a number from 1"),
        (["--mfu", "40"], "from 1e-6 to 1"),
        (["--tokens", "many"], "--tokens"),
        (["--gpu-memory", "1 potato"], "--gpu-memory"),
        (["--gpu-memory", "24"], "--gpu-memory: '24' is not an amount of memory"),
        (["--gpu-memory", "80G"], "such as 24GiB"),
        (["--gpu-memory", "24000000000"], "such as 24GiB"),
        (["--host-memory", "24e9"], "such as 24GiB"),
        (["--gpu", "0x4090"], "1 to 16"),
        (["--gpu", "64xh100"], "--nodes 8 --gpus 8 --gpu h100"),
        (["--gpu", "4090x8"], "--gpu 8x4090"),
        (["--gpu", "8x4090", "--gpus", "4"], "--gpus N --gpu 4090"),
        (["--gpu-memory", "0GiB"], "such as 24GiB"),
        (["--gpu-memory=-24GiB"], "such as 24GiB"),
        (["--gpu", "my card"], "--gpu 'my card' --gpu-memory 24GiB --tflops 165"),
        (["--gpu", "RTX 4090 48GB"], "--gpu rtx4090 --gpu-memory 48GiB"),
        (["--tflops", "165e12"], "such as 165"),
        (["--gpu", "cpu", "--tflops", "1"], "--calibrate"),
        (["--all", "--config", "demo"], "leave"),
        (["--all", "--hours", "8"], "leave"),
        (["--hours", "8", "--size", "300m", "--max_steps", "9"], "exclude each other"),
        (["--hours", "8", "--size", "300m", "train.max_tokens=1b"], "leave out one"),
        (["--hours", "0.0001"], "more hours or GPUs"),
        (["--hours", "0.001", "--config", "pretrain-1.5b"], "one step takes"),
        (["--config", "pretrain-72b", "--gpus-per-node", "1"], "does not fit"),
        (["train.learing_rate=1"], "learning_rate"),
    ],
)
def test_wrong_machines_are_refused_with_a_hint(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    assert hint in capsys.readouterr().err


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", "--json", *words]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("hours", [0.2, 8.0])
@pytest.mark.parametrize("model", ["--size 300m", "model.preset=120m", "--config pretrain-1.5b"])
def test_hours_give_a_model_its_tokens_and_the_command_names_both(
    model: str, hours: float, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(capsys, "--hours", str(hours), "--gpu", "8x4090", *model.split())
    assert 0.8 * hours < plan["choices"][0]["hours"] <= hours
    tokens = plan["arguments"][0].removeprefix("train.max_tokens=")
    assert plan["command"].startswith(f"deepspeed train.py {model} train.max_tokens={tokens} ")
    again = planned(capsys, "--gpu", "8x4090", *shlex.split(plan["command"])[2:])
    assert again["choices"][0]["hours"] == plan["choices"][0]["hours"]


def test_gpus_is_what_launch_calls_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "--gpus", "4") == planned(capsys, "--gpus-per-node", "4")


def test_any_gpu_is_planned_by_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    figures = ("--gpu-memory", "24GiB", "--tflops", "165.2", "--gpus", "2")
    plan = planned(capsys, "--gpu", "My Card", *figures)
    same = planned(capsys, "--gpu", "4090", *figures)
    assert (plan["gpu"], plan["gpu_memory_bytes"]) == ("My Card", 24 * 2**30)
    # Its memory's bandwidth is not given: a usual one is assumed.
    assert plan["choices"][0]["step_seconds"]["compute"] == pytest.approx(
        same["choices"][0]["step_seconds"]["compute"], rel=0.3
    )
    assert any(
        "My Card is not in the planner's list" in note and "PCIe" in note for note in plan["notes"]
    )
    assert not any("list" in note for note in same["notes"])
    faster = planned(capsys, "--gpu", "4090", "--tflops", "330.4", "--gpus", "2")["choices"][0][
        "step_seconds"
    ]
    slower = same["choices"][0]["step_seconds"]["compute"]
    assert slower / 2 < faster["compute"] < 0.8 * slower, "twice the products, the same memory"


def test_a_proposal_names_the_described_gpu_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", "pretrain-7b", "--gpu", "My Card"]
    words += ["--gpu-memory", "24GiB", "--tflops", "165"]
    assert main([*words, "--gpus", "1", "--host-memory", "8GiB"]) == 2
    fix = re.search(r"fix: (.*)", capsys.readouterr().err)[1]  # type: ignore[index]
    assert shlex.split(fix)[:6] == words[3:]
    assert main(["plan", "--config", "pretrain-7b", *shlex.split(fix)]) == 0


def test_a_gpu_that_no_run_was_written_for_is_said_to_be_planned_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = planned(capsys, "--gpu", "Ascend 910B")
    assert any("planned only" in note for note in plan["notes"])
    assert main(["plan", "--gpu", "MI300X"]) == 0
    assert "not tried with ROCm" in capsys.readouterr().out


@pytest.mark.parametrize("gpu", ["4090", "rtx5090", "L40S"])
def test_traffic_between_cards_without_nvlink_takes_time(
    gpu: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def zero1(gpu: str) -> dict[str, Any]:
        plan = planned(capsys, "--config", "pretrain-0.5b", "--gpus", "8", "--gpu", gpu)
        found = next(choice for choice in plan["choices"] if choice["recipe"] == "zero1")
        return found | {"link": plan["links_bytes_per_second"]["inside_node"]}

    choice = zero1(gpu)
    waits = choice["step_seconds"]["exposed"]
    traffic = choice["communication_bytes_per_step"]["inside_node"]
    assert 10e9 <= choice["link"] <= 50e9  # PCIe 3.0 to 5.0 x16
    # The weights are gathered with nothing beside it.
    assert waits >= traffic / 2 / choice["link"] * 0.999
    assert waits > 5 * zero1("h100")["step_seconds"]["exposed"]
    assert main(["plan", "--gpu", gpu]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"waiting for traffic [1-9][\d.]* m?s", shown)
    assert f"({choice['link'] / 1e9:.3g} GB/s) inside the node" in shown


def test_one_gpu_has_no_traffic_to_wait_for(capsys: pytest.CaptureFixture[str]) -> None:
    best = planned(capsys, "--gpu", "4090", "--gpus", "1")["choices"][0]
    assert best["step_seconds"]["exposed"] == 0
