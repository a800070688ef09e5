"""How many rows a chunk of the loss and of the tiled MLP has. Without torch, so that the planner reads it too."""

from __future__ import annotations

# Logits of a chunk, in elements, and the least and most rows. On CPU about 320 MB in float32: 256, 512 and
# 1,024 rows took the same time within the noise (docs/measurements/2026-11-23-cpu.md). On GPUs 2k to 8k rows
# keep the products large while 4,096 rows of 151,936 are 1.2 GB in bf16: an estimate, not measured yet.
CHUNKS = {"cpu": (80_000_000, 256, 1024), "cuda": (640_000_000, 2048, 8192)}
# The same for one of the four chunks of intermediate activations of the tiled SwiGLU. On CPU the CPU time of
# 512 to 2,048 rows was within 3 % (docs/measurements/2026-11-24-tiled-mlp.md); for GPUs an estimate: 160 MB
# each in 16 bit, 4,096 rows at 7B.
TILES = {"cpu": (2_097_152, 256, 2048), "cuda": (80_000_000, 2048, 8192)}


def chunk_rows(rows: int, vocab: int, device_type: str) -> int:
    """Rows per chunk of the loss: as many as fit the device's limit, in equal chunks without a small rest."""
    return _equal_chunks(rows, vocab, *CHUNKS.get(device_type, CHUNKS["cuda"]))


def tile_rows(rows: int, intermediate: int, device_type: str) -> int:
    """Rows per chunk of the tiled SwiGLU, by the same rule."""
    return _equal_chunks(rows, intermediate, *TILES.get(device_type, TILES["cuda"]))


def _equal_chunks(rows: int, columns: int, elements: int, least: int, most: int) -> int:
    limit = min(most, max(least, elements // columns))
    chunks = -(-rows // limit)
    even = -(-rows // chunks)
    return min(limit, -(-even // 64) * 64)  # a multiple of 64 keeps every product aligned
