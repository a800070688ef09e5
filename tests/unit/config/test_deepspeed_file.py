"""A DeepSpeed JSON is found and read, and an invalid or contradictory one is refused."""

from __future__ import annotations

import functools
import json
import operator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wikillm.config.deepspeed import (
    DeepSpeedRun,
    find_deepspeed,
    read_deepspeed,
    shipped_folder,
    shipped_names,
)
from wikillm.config.deepspeed_check import check_deepspeed, linked_values
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import ConfigError

CPU = DeepSpeedRun(
    TrainSection(),
    hidden_size=512,
    micro_batch=4,
    accumulation=8,
    world_size=2,
    local_world_size=2,
    precision="fp32",
    has_gpu=False,
)
GPU = replace(CPU, world_size=16, local_world_size=8, precision="bf16", has_gpu=True)


OPTIMIZER_KEYS = ("lr", "betas", "eps", "weight_decay")


def minimal(**changes: Any) -> dict[str, Any]:
    """A JSON without problems, with some keys replaced (`None` removes one)."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2},
    }
    config.update(changes)
    return {key: value for key, value in config.items() if value is not None}


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}


def refusal(tmp_path: Path, content: Any, run: DeepSpeedRun | None = None) -> str:
    """What `read_deepspeed` and `check_deepspeed` say about a file with this content; "" when
    nothing is wrong."""
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    try:
        check_deepspeed(read_deepspeed(path), run)
    except ConfigError as error:
        return str(error)
    return ""


# Finding


def test_the_shipped_recipes_have_their_names() -> None:
    names = "zero0 zero1 zero2 zero2_offload zero3 zero3_offload zero3_plus"
    assert " ".join(shipped_names()) == names


@pytest.mark.parametrize(
    "name", ["zero2", "zero2.json", "ds_configs/zero2.json", "ds_configs/zero2", "./zero2.json"]
)
def test_shipped_recipe_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = read_deepspeed(name)
    assert file.path == shipped_folder() / "zero2.json"
    assert file.is_shipped and file.asked_for == name
    assert file.get("zero_optimization.stage") == 2


def test_an_existing_file_takes_precedence_over_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero2.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert read_deepspeed("ds_configs/zero2.json").get("zero_optimization.stage") == 1
    (tmp_path / "zero3").mkdir()  # a folder named like a recipe is not a file
    assert find_deepspeed("zero3") == (shipped_folder() / "zero3.json", True)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("zero_2", "zero2"),
        ("zreo3.json", "zero3"),
        ("my/zero1.json", "zero1"),
        ("/nowhere/x.json", "zero2"),
    ],
)
def test_no_such_file_suggests_a_recipe(name: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_deepspeed(name)
    assert f"--deepspeed {suggestion}," in str(caught.value)


# Reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"zero_optimization": {"stage": 2,\n"stage": 3}}', ('"stage" appears twice', "2 and 3")),
        ('{\n "gradient_clipping": NaN}', ("finite numbers",)),
        ('{"gradient_clipping": 1e999}', ("finite numbers",)),
        ('{"gradient_clipping": ' + "1" * 5000 + "}", ("cannot be used",)),
        ('{\n "a" 1}', (":2:6", "not valid", "delimiter")),
        ('{\n // a comment\n "a": 1}', (":2:2", "no comments")),
        ("[1]", ("one object",)),
        ("", ("not valid",)),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", ("cannot be used",)),
    ],
)
def test_invalid_json_is_refused_with_its_place(
    tmp_path: Path, text: str, expected: tuple[str, ...]
) -> None:
    message = refusal(tmp_path, text)
    assert all(part in message for part in expected), message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_deepspeed(path)


# Checking the file alone


def test_a_minimal_file_is_fine(tmp_path: Path) -> None:
    assert refusal(tmp_path, minimal()) == ""
    assert refusal(tmp_path, minimal(), CPU) == ""


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipes_have_no_problems(name: str) -> None:
    file = read_deepspeed(name)
    check_deepspeed(file)
    check_deepspeed(file, GPU)
    linked = set(linked_values(GPU)) - {"optimizer.params." + key for key in OPTIMIZER_KEYS}
    assert {file.get(key) for key in linked} == {"auto"}
    assert "optimizer" not in file.json and "scheduler" not in file.json
    assert file.get("zero_optimization.stage") == int(name[4])
    if name.startswith("zero3"):
        assert file.get("zero_optimization.stage3_gather_16bit_weights_on_model_save") is True


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"zero_optimisation": {}}, 'did you mean "zero_optimization"?'),
        (zero(3, offload_param={"devise": "cpu"}), 'did you mean "device"?'),
        (zero(3, prefetch_bucket_size=1), 'did you mean "stage3_prefetch_bucket_size"?'),
        ({"stage": 2}, "move it into zero_optimization"),
        (zero(2, train_batch_size="auto"), "move it to the top level"),
        ({"elasticity": {"enabled": True}}, "train.*"),
        ({"progressive_layer_drop": {}}, "remove it"),
        (zero(3, mics_shard_size=8), "zero_hpz_partition_size"),
        (zero(2, cpu_offload=True), "offload_optimizer"),
        ({"bf16": None}, 'block "bf16"'),
        ({"fp16": {}}, 'block "fp16"'),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "both enabled"),
        ({"zero_optimization": None}, "plain data parallelism"),
        ({"zero_optimization": {}}, "accelerate would take 2"),
        ({"zero_optimization": {"stage": "3"}}, "0, 1, 2 or 3"),
        ({"zero_optimization": []}, "a block"),
        (zero(2, overlap_comm=1), "true or false"),
        ({"train_batch_size": "8"}, "a whole number"),
        (zero(2, overlap_comm="auto"), '"auto" has no meaning'),
        ({"scheduler": {}}, "train.lr_scheduler_type"),
        ({"optimizer": {"params": {"lr": "auto"}}}, "names none"),
        ({"optimizer": {"type": "Lion", "params": {"lr": "auto"}}}, "names Lion"),
        (zero(0, offload_optimizer={"device": "cpu"}), "ignores it"),
        (zero(2, offload_param={"device": "cpu"}), "from ZeRO stage 3 on"),
        (zero(3, offload_optimizer={"device": "nvme"}), "Checkpoints cannot hold"),
        (zero(3, offload_optimizer={"device": "cpu", "ratio": 0.5}), "Checkpoints cannot hold"),
        (zero(3, offload_optimizer={"device": "cpu", "super_offload": True}), "super_offload"),
        (zero(2, zero_quantized_weights=True), "qwZ needs ZeRO stage 3"),
        (zero(2, zenflow={"topk_ratio": 0.1}), "losses differ from plain ZeRO"),
        ({"tensor_parallel": {"autotp_size": 2}}, "losses differ from plain ZeRO"),
        ({"activation_checkpointing": {"cpu_checkpointing": True}}, "train.gradient_checkpointing"),
        ({"managed_gradient_accumulation": False}, "every micro-step"),
        (zero(2, reduce_bucket_size=0), "from 1 on"),
        (zero(2, reduce_bucket_size=0.5), "a whole number"),
        (zero(3, stage3_max_live_parameters=-1), "from 0 on"),
        ({"fp16": {"enabled": "auto", "initial_scale_power": 1000}}, "from 0 to 127"),
        ({"gradient_predivide_factor": 0}, "from 1e-06 on"),
        (zero(1) | {"gradient_predivide_factor": 2}, "does not work with reduce_scatter"),
        (zero(3) | {"prescale_gradients": True}, '"reduce_scatter": false'),
        ({"communication_data_type": "fp8"}, "one of fp16, bf16, fp32"),
        ({"checkpoint": {"tag_validation": "boo"}}, "one of ignore, warn, fail"),
    ],
)
def test_a_wrong_key_or_value_is_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    message = refusal(tmp_path, minimal(**changes))
    assert expected in message, message
    assert "ds.json" in message


def test_blocks_that_are_off_are_fine(tmp_path: Path) -> None:
    off = {
        "data_efficiency": {"enabled": False},
        "activation_checkpointing": {},
        "tensor_parallel": {"autotp_size": 1},
    }
    assert refusal(tmp_path, minimal(**off)) == ""


def test_all_problems_at_once_with_their_lines(tmp_path: Path) -> None:
    text = '{\n"zero_optimization": {"stage": 2},\n"nebula": {},\n"gradient_cliping": 1\n}'
    message = refusal(tmp_path, text)
    assert message.startswith("4 problems.")
    assert "ds.json:3 nebula" in message and "ds.json:4 gradient_cliping" in message


# Checking the file against the run


@pytest.mark.parametrize("path", linked_values(CPU))
def test_a_contradiction_names_both_values(tmp_path: Path, path: str) -> None:
    linked = linked_values(CPU)[path]
    wrong = True if linked.value is False else [0.9, 0.999] if "betas" in path else 3
    config = minimal(optimizer={"type": "AdamW", "params": {}})
    *blocks, key = path.split(".")
    functools.reduce(operator.getitem, blocks, config)[key] = wrong
    message = refusal(tmp_path, config, CPU)
    assert f"{path} contradicts the run." in message and linked.setting in message
    assert f"= {wrong}" in message and f"the run has {linked.value}" in message


def test_the_same_values_are_no_contradiction(tmp_path: Path) -> None:
    same = minimal(
        train_micro_batch_size_per_gpu=4,
        gradient_accumulation_steps=8,
        train_batch_size=64,
        gradient_clipping=1,
    )
    assert refusal(tmp_path, same, CPU) == ""
    params = {"lr": "auto", "betas": [0.9, 0.95], "torch_adam": True}
    assert refusal(tmp_path, minimal(optimizer={"type": "AdamW", "params": params}), CPU) == ""
    other = minimal(optimizer={"type": "AdamW", "params": params | {"amsgrad": True}})
    assert "optimizer.params.amsgrad has no effect" in refusal(tmp_path, other, CPU)


def test_features_that_need_a_gpu_are_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_deepspeed(read_deepspeed("zero3_plus"), CPU)
    assert all(name in str(caught.value) for name in ("hpZ", "qwZ", "qgZ", "--deepspeed zero3"))
    assert "fp16 does not train on a CPU" in refusal(
        tmp_path, minimal(), replace(CPU, precision="fp16")
    )


def test_hpz_must_divide_the_world(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, minimal(zero_optimization={"stage": 3, "zero_hpz_partition_size": 3}), GPU
    )
    assert "must divide" in message and "16 ranks" in message and "(8)" in message
