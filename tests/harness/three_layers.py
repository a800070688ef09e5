"""Small models of three layers, to compare compiled, tiled and checkpointed ones with."""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.utils import counters

from wikillm.models.shape import ARCHITECTURES

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80, "max_position_embeddings": 64, "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0, "tie_word_embeddings": True, "use_cache": False,
}  # fmt: skip


def build(architecture: str = "qwen2", **changes: Any) -> Any:
    """In training mode; the same weights each time."""
    torch.manual_seed(5)
    config, kind = ARCHITECTURES[architecture]
    head = {"head_dim": 16} if architecture == "qwen3" else {}
    return kind(config(**SHAPE | head | changes)).train()


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far, all models together."""
    return int(counters["stats"]["unique_graphs"])
