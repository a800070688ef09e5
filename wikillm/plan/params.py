"""Parameters and FLOPs of a decoder by closed formula: no torch, no model.

The counts are exact: a test compares them with transformers.

    attention   h x (H + 2K) x d  and  H x d x h
                biases on q, k, v (qwen2), two norms of width d (qwen3), neither (llama)
    SwiGLU      3 x h x f;  two norms of width h per layer, one at the end
    tables      V x h for the embedding, and once more for an output head that is not tied

with h hidden_size, H query heads, K key-value heads of width d, f intermediate_size, V vocabulary.

    FLOPs/token = 6 N_matmul + 12 L H d T      forward and backward, full attention

with L layers and T tokens per sequence. This is PaLM's convention (arXiv:2204.02311, appendix B):
2 FLOPs per weight forward, 4 backward; attention's scores and values over all T positions, although
a causal kernel computes half of them; recomputation is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from wikillm.config.schema import ModelSection


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """`total` counts a tied embedding once.

    `matmul` counts every weight in a matrix product: the output head once, tied or not, but not the
    embedding lookup (the convention of PaLM, arXiv:2204.02311, appendix B).
    """

    total: int
    embedding: int
    matmul: int


def head_width(model: ModelSection) -> int:
    """Width of one attention head."""
    return model.head_dim or model.hidden_size // model.num_attention_heads


def count_parameters(model: ModelSection, vocab_size: int) -> ParameterCount:
    """Counts for `model` with `vocab_size` rows in the embedding."""
    h = model.hidden_size
    d = head_width(model)
    f = model.intermediate_size
    heads = model.num_attention_heads
    kv_heads = model.num_key_value_heads
    layers = model.num_hidden_layers
    matmul_per_layer = h * (heads + 2 * kv_heads) * d + heads * d * h + 3 * h * f
    of_attention = {"qwen2": (heads + 2 * kv_heads) * d, "qwen3": 2 * d, "llama": 0}
    extra_per_layer = 2 * h + of_attention[model.architecture]
    embedding = vocab_size * h
    tables = 1 if model.tie_word_embeddings else 2
    return ParameterCount(
        total=tables * embedding + layers * (matmul_per_layer + extra_per_layer) + h,
        embedding=embedding,
        matmul=layers * matmul_per_layer + embedding,
    )


def attention_flops(model: ModelSection, sequence_length: int) -> int:
    """FLOPs per token of attention's scores and values, both passes, over all T positions."""
    width = model.num_attention_heads * head_width(model)
    return 12 * model.num_hidden_layers * width * sequence_length


def flops_per_token(model: ModelSection, vocab_size: int, sequence_length: int) -> int:
    """Model FLOPs per trained token, forward and backward."""
    matmul = count_parameters(model, vocab_size).matmul
    return 6 * matmul + attention_flops(model, sequence_length)
