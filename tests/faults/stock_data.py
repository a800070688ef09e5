"""Data and model of the stock runs: the same token store and shape, without WikiLLM's order."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Qwen2Config


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of `length` tokens of a file of int32, front to back."""

    def __init__(self, tokens: str, length: int) -> None:
        whole = np.load(tokens, mmap_mode="r")
        self.rows = whole[: len(whole) // length * length].reshape(-1, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(np.array(self.rows[index], dtype=np.int64))
        return {"input_ids": ids, "labels": ids.clone()}


def tiny_qwen2(vocab: int) -> Qwen2Config:
    """The shape of harness.tiny_run.TINY."""
    return Qwen2Config(
        vocab_size=vocab,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        use_cache=False,
    )
