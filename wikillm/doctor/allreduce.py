"""One rank of a bandwidth measurement: `python -m wikillm.doctor.allreduce`, gloo over TCP.

The only file of the room that imports torch. Rank, world, address and port come from torch's usual
variables; the result is one JSON line. 8 MiB are reduced 1 to 20 times, about a second in all.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

SIZE = 8 << 20
SECONDS = 1.0


def main() -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=12))
    try:
        world = dist.get_world_size()
        tensor = torch.ones(SIZE // 4)
        first = _timed(tensor, 1)
        times = torch.tensor([min(20.0, max(1.0, SECONDS / max(first, 1e-6)))])
        dist.broadcast(times, 0)  # all ranks run the same number of collectives
        count = int(times)
        seconds = _timed(tensor, count) / count
        rate = 2 * (world - 1) / world * SIZE / seconds
    finally:
        dist.destroy_process_group()
    sys.stdout.write(json.dumps({"bytes_per_second": rate, "ranks": world}) + "\n")


def _timed(tensor: object, count: int) -> float:
    import torch.distributed as dist

    dist.barrier()
    start = time.monotonic()
    for _ in range(count):
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)  # ones stay ones
    return time.monotonic() - start


if __name__ == "__main__":
    main()
