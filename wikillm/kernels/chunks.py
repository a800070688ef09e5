"""Chooses the rows per chunk of the loss and the tiled MLP. No torch: the planner imports it."""

from __future__ import annotations

# Each entry: (elements of a chunk, least rows, most rows). The loss's elements are logits. On a CPU
# they take about 320 MB in float32; 256, 512 and 1,024 rows took the same time within the noise
# (docs/measurements/2026-11-23-cpu.md). On GPUs 2k to 8k rows keep the products large, and 4,096
# rows of 151,936 take 1.2 GB in bf16: an estimate, not measured.
LOSS_CHUNKS = {"cpu": (80_000_000, 256, 1024), "cuda": (640_000_000, 2048, 8192)}
# The MLP's elements are one of four chunks of intermediate activations. On a CPU the CPU time of
# 512 to 2,048 rows was within 3 % (docs/measurements/2026-11-24-tiled-mlp.md). For GPUs the figure
# is an estimate: 160 MB each in 16 bit, 4,096 rows at 7B.
MLP_CHUNKS = {"cpu": (2_097_152, 256, 2048), "cuda": (80_000_000, 2048, 8192)}


def loss_chunk_rows(rows: int, vocab: int, device_type: str) -> int:
    """Rows whose logits are in memory at a time, for `rows` tokens and `vocab` logits each."""
    return _equal_chunks(rows, vocab, *LOSS_CHUNKS.get(device_type, LOSS_CHUNKS["cuda"]))


def mlp_chunk_rows(rows: int, intermediate: int, device_type: str) -> int:
    """Rows whose intermediate activations, of width `intermediate`, are in memory at a time."""
    return _equal_chunks(rows, intermediate, *MLP_CHUNKS.get(device_type, MLP_CHUNKS["cuda"]))


def _equal_chunks(rows: int, columns: int, elements: int, min_rows: int, max_rows: int) -> int:
    """As many rows as `elements` allow, so that all chunks have about the same size."""
    limit = min(max_rows, max(min_rows, elements // columns))
    even = -(-rows // -(-rows // limit))
    return min(limit, -(-even // 64) * 64)  # a multiple of 64 keeps every product aligned
