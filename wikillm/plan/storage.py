"""Seconds for checkpoints and for the start of the data, at an assumed rate of the storage.

Training waits while every rank copies its part of a checkpoint to the host. The part is written
during the next steps, by all nodes at once. On resume each rank verifies its part (XXH3-128,
faster than storage) and loads it: two reads. Before the first step a node reads one window of
shards, and each rank hashes it (`data.verify=first_use`; a shard of 64 MiB of text has about 75 MB
of ids). Example: 864 GB from 64 nodes of 8 ranks at 2 GB/s per node are 13.5 GB per node, which
takes 6.8 s to write, 6.8 s to verify and 6.8 s to load.
"""

from __future__ import annotations

from wikillm.plan.choose import Machine

SHARD_BYTES = 75_000_000
SHA256_RATE = 1.5e9
"""Bytes/s of one core (docs/measurements/2026-11-28-ledger.md)."""


def storage_time(checkpoint: int, machine: Machine, window_shards: int) -> dict[str, float]:
    """Seconds that training waits (`copy`), that pass during training (`write`), or before it.

    Args:
        checkpoint: bytes of a checkpoint.
        window_shards: shards of the store that are read before the first step.
    """
    rate = machine.storage_rate
    one_pass = checkpoint / machine.nodes / rate  # over a node's part of the checkpoint
    first_window = window_shards * SHARD_BYTES
    return {
        "bytes_per_second": rate,
        "copy": checkpoint / machine.ranks / machine.gpu.host_link,
        "write": one_pass,
        "verify": one_pass,
        "load": one_pass,
        "data_start": first_window / rate + first_window / SHA256_RATE,
    }
