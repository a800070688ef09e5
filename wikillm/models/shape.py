"""Converts the model section to a Hugging Face configuration, the content of config.json."""

from __future__ import annotations

from typing import Any

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from wikillm.config.schema import ModelSection

ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
"""Configuration and model class by the value of model.architecture."""


def hf_config(section: ModelSection, vocab_size: int, eos_id: int) -> PreTrainedConfig:
    """A config that plain transformers understands. `vocab_size` is the plan's, padding included.

    There is no pad token on purpose: transformers passes `pad_token_id` to nn.Embedding as
    `padding_idx`, and that row would never be trained.
    """
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": section.hidden_size,
        "intermediate_size": section.intermediate_size,
        "num_hidden_layers": section.num_hidden_layers,
        "num_attention_heads": section.num_attention_heads,
        "num_key_value_heads": section.num_key_value_heads,
        "max_position_embeddings": section.max_position_embeddings,
        "rms_norm_eps": section.rms_norm_eps,
        "initializer_range": section.initializer_range,
        "tie_word_embeddings": section.tie_word_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": section.rope_theta},
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": None,
    }
    if section.architecture == "qwen3" or section.head_dim is not None:
        # Always set: without it Qwen3Config assumes 128 for any width.
        shape["head_dim"] = section.head_dim or section.hidden_size // section.num_attention_heads
    config, _ = ARCHITECTURES[section.architecture]
    return config(**shape)
