"""Seconds for checkpoints and for the start of the data, at an assumed rate of the storage.

Training waits while every rank copies its share of a checkpoint to the host. The share is written
during the next steps, by all nodes at once. On resume each rank verifies its share (XXH3-128,
faster than storage) and loads it: two reads. Before the first step a node reads one window of
shards, and each rank hashes it (`data.verify=first_use`; a shard of 64 MiB of text has about 75 MB
of ids). Example: 864 GB from 64 nodes of 8 ranks at 2 GB/s per node are 13.5 GB per node, which
takes 6.8 s to write, 6.8 s to verify and 6.8 s to load.
"""

from __future__ import annotations

from wikillm.plan.choose import Machine

USUAL_RATE = 2e9
"""Bytes/s of a node: 16 Gbit/s to a shared file system; a local NVMe disk is faster."""
SHARD_BYTES = 75_000_000
SHA256_RATE = 1.5e9
"""Bytes/s of one core (docs/measurements/2026-11-28-ledger.md)."""


def storage_time(checkpoint: int, machine: Machine, window: int, rate: float) -> dict[str, float]:
    """Seconds that training waits for (`copy`), that pass during training (`write`), and before it.

    `checkpoint` is in bytes, `rate` in bytes/s of a node, `window` in shards of the store.
    """
    of_node = checkpoint / machine.nodes / rate
    first_window = window * SHARD_BYTES
    return {
        "bytes_per_second": rate,  # of a node
        "copy": checkpoint / machine.ranks / machine.gpu.host_link,
        "write": of_node,
        "verify": of_node,
        "load": of_node,
        "data_start": first_window / rate + first_window / SHA256_RATE,
    }
