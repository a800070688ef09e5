"""The shape of a Hugging Face model folder, read from its `config.json`, for `model.init_from`.

The keys are settings of the `preset` layer and replace the model preset's shape. Models that
WikiLLM cannot continue exactly are refused: other architectures, remote code, quantized weights,
sliding windows, scaled rotary embeddings. The weights are read in `models.pretrained`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wikillm.config.origin import Origin, Setting
from wikillm.core.errors import ConfigError

_REQUIRED = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
]
# Defaults of transformers for a missing key: these are equal for all architectures ...
_OPTIONAL = {
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
# ... and max_position_embeddings differs.
_POSITIONS = {"qwen2": 32768, "qwen3": 32768, "llama": 2048}


def shape_settings(folder: str) -> list[Setting]:
    """The `model.*` keys that `folder/config.json` fixes. Raises ConfigError if unsupported."""
    path = Path(folder) / "config.json"
    config = _read(path, folder)
    _refuse_unsupported(config, path)
    missing = [name for name in _REQUIRED if not isinstance(config.get(name), int)]
    if missing:
        got = f"{path}: {', '.join(missing)}"
        raise ConfigError("config.json has missing or non-integer keys.", got)
    values: dict[str, Any] = {"architecture": _architecture(config)}
    values |= {name: config[name] for name in _REQUIRED}
    values |= {name: config.get(name, default) for name, default in _OPTIONAL.items()}
    positions = config.get("max_position_embeddings", _POSITIONS[config["model_type"]])
    values["max_position_embeddings"] = positions
    values["head_dim"] = config.get("head_dim") or (
        128 if config["model_type"] == "qwen3" else None
    )
    values["rope_theta"] = _rope(config).get("rope_theta", 10_000.0)
    origin = Origin("preset", str(path))
    return [Setting(f"model.{name}", value, origin) for name, value in values.items()]


def _read(path: Path, folder: str) -> dict[str, Any]:
    fix = "a folder with config.json, model.safetensors and tokenizer.json"
    if not path.is_file():
        what = "model.init_from is not a model folder on this machine."
        raise ConfigError(what, got=f"{folder}: no config.json", fix=fix)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = "A model folder's config.json cannot be read."
        raise ConfigError(what, f"{path}: {error}", fix) from None
    if not isinstance(config, dict):
        raise ConfigError("A model folder's config.json is not a JSON object.", str(path), fix)
    kinds = {"rope_parameters": dict, "rope_scaling": dict, "layer_types": list}
    wrong = [name for name, kind in kinds.items() if not isinstance(config.get(name), kind | None)]
    if wrong:
        what = "config.json has values of another kind than transformers writes."
        raise ConfigError(what, f"{path}: {', '.join(wrong)}", fix)
    return config


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters, from the nested form of transformers 5 or the flat form of version 4."""
    nested = config.get("rope_parameters") or {}
    flat = {"rope_theta": config.get("rope_theta", 10_000.0), **(config.get("rope_scaling") or {})}
    return flat | nested


def _architecture(config: dict[str, Any]) -> str | None:
    """The architecture in WikiLLM's terms; None if it is not supported.

    A Llama with attention biases is an export of a Qwen2 model. Loading the weights later checks
    that the biases which Qwen2 lacks are 0.
    """
    model_type = config.get("model_type")
    if model_type == "llama" and config.get("attention_bias"):
        model_type = "qwen2"
    return model_type if model_type in _POSITIONS else None


def _refuse_unsupported(config: dict[str, Any], path: Path) -> None:
    if _architecture(config) is None:
        what = f"model.init_from must be a {' or '.join(_POSITIONS)} model."
        raise ConfigError(what, got=f"{path}: model_type {config.get('model_type')!r}")
    if "auto_map" in config:
        what = "The model needs remote code, which WikiLLM does not run."
        raise ConfigError(what, got=f"{path}: auto_map", fix="a model without auto_map")
    rope = _rope(config)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    layer_types = set(config.get("layer_types") or ()) - {"full_attention"}
    unsupported = {
        "quantized weights": "quantization_config" in config,
        "sliding-window attention": bool(config.get("use_sliding_window")) or bool(layer_types),
        f"rotary scaling {rope_type!r}": rope_type != "default",
        "rotary parameters by layer": any(isinstance(value, dict) for value in rope.values()),
        f"activation {config.get('hidden_act')!r}": config.get("hidden_act", "silu") != "silu",
        "attention biases": config["model_type"] == "qwen3" and bool(config.get("attention_bias")),
        "MLP biases": bool(config.get("mlp_bias")),
    }
    for what, is_there in unsupported.items():
        if is_there:
            raise ConfigError(f"model.init_from cannot continue a model with {what}.", str(path))
