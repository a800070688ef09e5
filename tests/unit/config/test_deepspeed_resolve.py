"""A resolved DeepSpeed JSON has no value left to fill, and agrees with Hugging Face and the run."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wikillm.config.deepspeed import DeepSpeedRun, lookup, read_deepspeed, shipped_names
from wikillm.config.deepspeed_keys import AUTO
from wikillm.config.deepspeed_resolve import ResolvedDeepSpeed, resolve_deepspeed
from wikillm.config.keys import nested
from wikillm.config.schema_train import TrainSection

CPU = DeepSpeedRun(
    TrainSection(max_grad_norm=0.7, adam_epsilon=1e-9),
    hidden_size=96,
    micro_batch=4,
    accumulation=8,
    world_size=2,
    local_world_size=2,
    precision="fp32",
    has_gpu=False,
)
GPU = replace(CPU, world_size=16, local_world_size=8, precision="bf16", has_gpu=True)
ON_CPU = tuple(name for name in shipped_names() if name != "zero3_plus")


def with_train(run: DeepSpeedRun, **changes: Any) -> DeepSpeedRun:
    return replace(run, train=run.train.model_copy(update=changes))


def resolve(tmp_path: Path, run: DeepSpeedRun, **changes: Any) -> ResolvedDeepSpeed:
    config: dict[str, Any] = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2},
        **changes,
    }
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    return resolve_deepspeed(read_deepspeed(path), run)


def arguments(run: DeepSpeedRun) -> SimpleNamespace:
    """The attributes of TrainingArguments that `HfTrainerDeepSpeedConfig` reads, for a world this
    machine is not."""
    return SimpleNamespace(
        world_size=run.world_size,
        per_device_train_batch_size=run.micro_batch,
        gradient_accumulation_steps=run.accumulation,
        max_grad_norm=run.train.max_grad_norm,
        learning_rate=run.train.learning_rate,
        adam_beta1=run.train.adam_beta1,
        adam_beta2=run.train.adam_beta2,
        adam_epsilon=run.train.adam_epsilon,
        weight_decay=run.train.weight_decay,
        save_on_each_node=False,
        fp16=run.precision == "fp16",
        fp16_full_eval=False,
        bf16=run.precision == "bf16",
        bf16_full_eval=False,
        get_warmup_steps=lambda steps: 10,
    )


def hugging_face_fills(config: dict[str, Any], run: DeepSpeedRun) -> dict[str, Any]:
    """The config after Hugging Face's own two passes; raises ValueError on a mismatch."""
    from transformers.integrations.deepspeed import (
        HfTrainerDeepSpeedConfig,
        unset_hf_deepspeed_config,
    )

    hf = HfTrainerDeepSpeedConfig(copy.deepcopy(config))
    try:
        hf.trainer_config_process(arguments(run))
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=run.hidden_size))
        hf.trainer_config_finalize(arguments(run), model, num_training_steps=100)
        return hf.config
    finally:
        unset_hf_deepspeed_config()


@pytest.mark.parametrize("name", shipped_names())
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_hugging_face_finds_nothing_to_change(name: str, precision: str) -> None:
    run = replace(GPU, precision=precision)
    resolved = resolve_deepspeed(read_deepspeed(name), run).json
    assert hugging_face_fills(resolved, run) == resolved


@pytest.mark.parametrize("name", ON_CPU)
def test_values_equal_those_that_hugging_face_fills_in(name: str) -> None:
    """Every value that Hugging Face puts into the shipped file is the one we put in."""
    file = read_deepspeed(name)
    theirs, ours = hugging_face_fills(dict(file.json), CPU), resolve_deepspeed(file, CPU).json

    def compare(their_block: dict[str, Any], our_block: dict[str, Any], path: str) -> None:
        for key, value in their_block.items():
            if isinstance(value, dict):
                compare(value, our_block[key], f"{path}.{key}")
            elif key != "pin_memory":  # ours is false on a CPU, on purpose
                assert our_block[key] == value, f"{path}.{key}"

    compare(theirs, ours, name)


def test_the_result_is_json_without_auto(tmp_path: Path) -> None:
    everything = nested(dict.fromkeys(AUTO, "auto"))
    everything["zero_optimization"]["stage"] = 3
    everything["optimizer"]["type"] = "AdamW"
    found = [resolve(tmp_path, GPU, **everything)]
    found += [resolve_deepspeed(read_deepspeed(name), GPU) for name in shipped_names()]
    for one in found:
        assert '"auto"' not in json.dumps(one.json, allow_nan=False)


def test_linked_keys_are_filled_even_if_the_file_lacks_them(tmp_path: Path) -> None:
    """DeepSpeed's default clips at 1.0: a run with max_grad_norm=0 would be clipped in silence."""
    resolved = resolve(tmp_path, with_train(CPU, max_grad_norm=0.0))
    assert resolved.json["gradient_clipping"] == 0.0
    assert resolved.json["train_batch_size"] == 64
    assert any("gradient_clipping=0.0" in note for note in resolved.notes)


def test_the_file_is_not_changed() -> None:
    file = read_deepspeed("zero3")
    before = copy.deepcopy(file.json)
    resolve_deepspeed(file, CPU)
    assert file.json == before


@pytest.mark.parametrize(
    ("name", "run", "expected", "note"),
    [
        ("zero3_plus", GPU, {"zero_optimization.zero_hpz_partition_size": 8}, "partition_size=8"),
        ("zero3_plus", replace(GPU, world_size=8), {}, "one node"),
        (
            "zero3_offload",
            CPU,
            {
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization.offload_optimizer.pin_memory": False,
                "zero_optimization.offload_param.pin_memory": False,
            },
            "torch's AdamW",
        ),
        (
            "zero2_offload",
            GPU,
            {
                "zero_force_ds_cpu_optimizer": True,
                "zero_optimization.offload_optimizer": {"device": "cpu", "pin_memory": True},
                "optimizer": None,
            },
            "CPU Adam",
        ),
    ],
)
def test_hpz_and_offload_are_resolved_with_a_note(
    name: str, run: DeepSpeedRun, expected: dict[str, Any], note: str
) -> None:
    resolved = resolve_deepspeed(read_deepspeed(name), run)
    assert {key: lookup(resolved.json, key) for key in expected} == expected
    assert any(note in line for line in resolved.notes)


def test_an_optimizer_block_that_agrees_is_left_out(tmp_path: Path) -> None:
    block = {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "weight_decay"), "auto")}
    resolved = resolve(tmp_path, CPU, optimizer=block)
    assert "optimizer" not in resolved.json
    assert any("the optimizer block is left out" in note for note in resolved.notes)


def test_nan_is_not_hidden_and_nothing_synchronises(tmp_path: Path) -> None:
    resolved = resolve(tmp_path, GPU)
    assert resolved.json["bf16"] == {"enabled": True, "check_grad_overflow": False}
    assert resolved.json["timers"] == {"throughput": {"enabled": False}}
    kept = resolve(
        tmp_path, GPU, bf16={"enabled": "auto", "check_grad_overflow": True}, steps_per_print=10
    )
    assert kept.json["bf16"]["check_grad_overflow"] is True
    notes = "\n".join(kept.notes)
    assert "skipped" in notes and "steps_per_print" in notes


def test_null_means_deepspeeds_default(tmp_path: Path) -> None:
    resolved = resolve(
        tmp_path, CPU, optimizer=None, communication_data_type=None, bf16={"enabled": None}
    )
    assert "optimizer" not in resolved.json and "communication_data_type" not in resolved.json
    assert resolved.json["bf16"]["enabled"] is False


def test_a_missing_path_that_names_a_recipe_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "the shipped" in resolve_deepspeed(read_deepspeed("ds_configs/zero1.json"), CPU).notes[0]
    by_name = resolve_deepspeed(read_deepspeed("zero1"), CPU)
    assert not any("the shipped" in note for note in by_name.notes)


def test_muon_reduces_whole_gradients_at_stage_3_only(tmp_path: Path) -> None:
    muon = with_train(CPU, optimizer="muon", max_grad_norm=0.0)
    zero3 = resolve(tmp_path, muon, zero_optimization={"stage": 3, "reduce_scatter": True})
    assert zero3.json["zero_optimization"]["reduce_scatter"] is False
    assert any("Muon needs complete gradients" in note for note in zero3.notes)
    zero2 = resolve(tmp_path, muon, zero_optimization={"stage": 2, "reduce_scatter": True})
    assert zero2.json["zero_optimization"]["reduce_scatter"] is True
    assert "optimizer" not in zero2.json and zero2.json["gradient_clipping"] == 0.0
