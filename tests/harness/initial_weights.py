"""Rank program: build a model under a ZeRO stage and return digests of its whole parameters."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "final_norm_init": 0.25,
}


def digests(stage: int, precision: str, model: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """{parameter: sha256 as float32}, plus `partitioned` and a digest of the rotary frequencies."""
    import deepspeed
    from transformers import TrainingArguments

    from wikillm.config.schema import ModelSection
    from wikillm.models.build import build_model

    config = {
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": precision == "bf16"},
        "train_micro_batch_size_per_gpu": "auto",
    }
    args = TrainingArguments(
        output_dir="unused",
        use_cpu=True,
        report_to="none",
        deepspeed=config,
        bf16=precision == "bf16",
    )
    built = build_model(ModelSection(**model), vocab_size, args, eos_id=0, seed=1)
    found: dict[str, Any] = {
        "partitioned": all(hasattr(parameter, "ds_id") for parameter in built.parameters())
    }
    found["inv_freq"] = _digest(built.model.rotary_emb.inv_freq)
    for name, parameter in built.named_parameters():
        is_partitioned = hasattr(parameter, "ds_id")
        with (
            deepspeed.zero.GatheredParameters([parameter])
            if is_partitioned
            else contextlib.nullcontext()
        ):
            found[name] = _digest(parameter.detach())
    return found


def _digest(tensor: Any) -> str:
    return hashlib.sha256(tensor.float().contiguous().numpy().tobytes()).hexdigest()
