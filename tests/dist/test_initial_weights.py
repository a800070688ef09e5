"""Weights at step 0 are equal for every ZeRO stage and world size. All ZeRO tests rely on this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness.initial_weights import SHAPE, digests
from harness.ranks import run_ranks

from wikillm.config.schema import ModelSection
from wikillm.models.init import initial_values


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return run_ranks(digests, 1, 0, "fp32", SHAPE, 96)[0]


@pytest.mark.parametrize(("stage", "world"), [(2, 2), (3, 1), (3, 2)])
def test_every_stage_and_world_starts_from_the_same_weights(
    stage: int, world: int, alone: dict[str, Any]
) -> None:
    for found in run_ranks(digests, world, stage, "fp32", SHAPE, 96):
        assert found == {**alone, "partitioned": stage == 3}


def test_in_bf16_zero3_holds_the_same_weights_rounded(alone: dict[str, Any]) -> None:
    from harness.initial_weights import _digest

    found = run_ranks(digests, 2, 3, "bf16", SHAPE, 96)
    assert found[0] == found[1]
    name = "model.layers.1.mlp.up_proj.weight"
    std = ModelSection().initializer_range
    rounded = initial_values(name, torch.Size([48, 32]), 1, std).bfloat16()
    assert found[0][name] == _digest(rounded)
    assert found[0]["model.norm.weight"] == _digest(torch.full((32,), 0.25))
    assert found[0]["inv_freq"] == alone["inv_freq"], "rotary frequencies must stay float32 values"


def test_weights_from_a_folder_are_the_same_on_zero3(tmp_path: Path) -> None:
    from transformers import Qwen2ForCausalLM

    from wikillm.models.shape import hf_config

    Qwen2ForCausalLM(hf_config(ModelSection(**SHAPE), 96, eos_id=0)).save_pretrained(tmp_path)
    section = {**SHAPE, "vocab_size": 96, "init_from": str(tmp_path)}
    plain = run_ranks(digests, 1, 0, "fp32", section, 96)[0]
    for found in run_ranks(digests, 2, 3, "fp32", section, 96):
        assert found == {**plain, "partitioned": True}
