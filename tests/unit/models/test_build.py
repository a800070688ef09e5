"""Built models: exact counts, initial weights, padded rows, continuing from a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness.initial_weights import SHAPE as SMALL
from transformers import TrainingArguments

from wikillm.config.load import load
from wikillm.config.schema import ModelSection
from wikillm.core.errors import CheckpointError, ConfigError, WikiLLMError
from wikillm.models.build import build_model
from wikillm.models.shape import ARCHITECTURES, hf_config
from wikillm.plan.params import count_parameters


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingArguments]:
    yield TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("out")), use_cpu=True, report_to="none"
    )


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("head_dim", [None, 16])
@pytest.mark.parametrize("tied", [True, False])
def test_the_closed_formula_agrees_for_any_shape(
    architecture: str, head_dim: int | None, tied: bool
) -> None:
    section = ModelSection(
        architecture=architecture, head_dim=head_dim, tie_word_embeddings=tied, **SMALL
    )
    config, model = ARCHITECTURES[architecture]
    with torch.device("meta"):
        built = model(hf_config(section, 77, eos_id=0))
    count = count_parameters(section, 77)
    assert sum(parameter.numel() for parameter in built.parameters()) == count.total
    matmul = [
        module.weight.numel() for module in built.modules() if isinstance(module, torch.nn.Linear)
    ]
    assert sum(matmul) == count.matmul


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_fresh_weights(architecture: str, args: TrainingArguments) -> None:
    section = ModelSection(architecture=architecture, **SMALL)
    state = torch.random.get_rng_state()
    model = build_model(section, 640, args, eos_id=3, seed=1)
    assert torch.equal(state, torch.random.get_rng_state()), "the global random state moved"
    assert isinstance(model, ARCHITECTURES[architecture][1])
    assert (model.config.eos_token_id, model.config.pad_token_id, model.config.use_cache) == (
        3,
        None,
        False,
    )
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            value = 0.25 if name == "model.norm.weight" else 1.0
            assert torch.equal(parameter, torch.full_like(parameter, value))
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
            assert abs(parameter.mean().item()) < 0.002
    again = build_model(section, 640, args, eos_id=3, seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    other = build_model(section, 640, args, eos_id=3, seed=2)
    assert not torch.equal(model.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_padding_rows_of_the_vocabulary_are_initialised_as_the_others(
    args: TrainingArguments,
) -> None:
    rows = build_model(ModelSection(**SMALL), 640, args, eos_id=639, seed=1).get_input_embeddings()
    assert rows.padding_idx is None, "the end-of-text row would never be trained"
    assert rows.weight[600:].std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_init_from_keeps_the_architecture_and_the_weights(
    architecture: str, tmp_path: Path, args: TrainingArguments
) -> None:
    section = ModelSection(architecture=architecture, **SMALL)
    original = build_model(section, 64, args, eos_id=5, seed=9)
    original.save_pretrained(tmp_path / "model")
    found = continued(tmp_path / "model")
    assert found.architecture == architecture
    again = build_model(found, 64, args, eos_id=5, seed=1)
    for one, other in zip(again.parameters(), original.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def folder(tmp_path: Path, args: TrainingArguments) -> Path:
    target = tmp_path / "model"
    build_model(ModelSection(**SMALL), 64, args, eos_id=5, seed=9).save_pretrained(target)
    return target


def continued(folder: Path) -> ModelSection:
    return load("demo", [f"model.init_from={folder}", "train.sequence_length=64"]).config.model


def test_pickled_weights_are_refused(folder: Path, args: TrainingArguments) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no safetensors weights") as refused:
        build_model(continued(folder), 64, args, eos_id=0, seed=1)
    assert "pickled weights are never read: pytorch_model.bin" in (refused.value.got or "")


def test_an_index_must_stay_in_its_folder(folder: Path, args: TrainingArguments) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        build_model(continued(folder), 64, args, eos_id=0, seed=1)


def test_an_adapter_is_refused(folder: Path, args: TrainingArguments) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an adapter"):
        build_model(continued(folder), 64, args, eos_id=0, seed=1)


def test_a_folder_that_changed_after_the_plan_is_refused(
    folder: Path, args: TrainingArguments
) -> None:
    section = continued(folder)
    shutil.rmtree(folder)
    build_model(ModelSection(**SMALL), 128, args, eos_id=5, seed=9).save_pretrained(folder)
    with pytest.raises(ConfigError, match="not the planned one") as refused:
        build_model(section, 64, args, eos_id=0, seed=1)
    assert "vocab_size: 128, planned 64" in (refused.value.got or "")


def test_a_model_built_under_a_foreign_deepspeed_configuration_is_refused(tmp_path: Path) -> None:
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    stale = HfDeepSpeedConfig(
        {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
    )
    try:
        with pytest.raises(WikiLLMError, match="a DeepSpeed configuration that is not"):
            build_model(ModelSection(**SMALL), 64, arguments, eos_id=0, seed=1)
    finally:
        del stale
