"""The shape of a model folder: both generations of config.json, and the unsupported models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wikillm.config.load import load
from wikillm.config.resolved import to_yaml
from wikillm.core.errors import ConfigError

QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
}


def folder_with(path: Path, **changes: Any) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**QWEN2, **changes}))
    return str(path)


def test_the_folder_gives_the_shape(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m")
    resolved = load(None, [f"model.init_from={folder}"])
    model = resolved.config.model
    assert (model.hidden_size, model.vocab_size, model.rope_theta) == (64, 512, 1e6)
    assert str(resolved.origins["model.hidden_size"]) == f"preset: {folder}/config.json"
    assert model.label == folder, "not the preset, whose shape is not used"


def test_rope_theta_is_read_from_both_generations_of_config_json(tmp_path: Path) -> None:
    changes = {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    folder = folder_with(tmp_path / "m", **changes)
    assert load(None, [f"model.init_from={folder}"]).config.model.rope_theta == 5e5


def test_a_model_key_of_the_user_must_agree_with_the_folder(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m")
    words = [f"model.init_from={folder}"]
    assert load(None, [*words, "model.hidden_size=64"]).config.model.hidden_size == 64
    with pytest.raises(ConfigError, match="contradicts the model") as refused:
        load(None, [*words, "model.hidden_size=128"])
    assert refused.value.fix == "leave model.hidden_size out"


def test_the_resolved_yaml_gives_the_same_shape(tmp_path: Path) -> None:
    resolved = load("demo", [f"model.init_from={folder_with(tmp_path / 'm')}"])
    (tmp_path / "resolved.yaml").write_text(to_yaml(resolved))
    assert load(str(tmp_path / "resolved.yaml")).config == resolved.config


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "mistral"}, "must be a qwen2 or qwen3 or llama"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "needs remote code"),
        ({"quantization_config": {}}, "quantized weights"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rotary scaling 'yarn'"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5e6, "rope_type": "default"}}},
            "rotary parameters by layer",
        ),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention biases"),
        ({"hidden_size": None}, "missing or non-integer keys"),
        ({"rope_parameters": [1]}, "another kind than transformers writes"),
        ({"layer_types": 1}, "another kind than transformers writes"),
    ],
)
def test_an_unsupported_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, [f"model.init_from={folder_with(tmp_path / 'm', **changes)}"])
    assert what in refused.value.what


def test_a_missing_folder_or_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    for folder, what in (
        (str(tmp_path / "absent"), "not a model folder"),
        (str(tmp_path), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=what):
            load(None, [f"model.init_from={folder}"])
