"""Measures an all-reduce on this machine: NCCL between its GPUs, or gloo between two processes.

`python -m wikillm.measure.collective SECONDS` runs one rank, with torch's usual environment
variables. Rank 0 prints one line of JSON. `wikillm doctor --hostfile` starts one rank on each node.
The result is the bus bandwidth, 2 (n - 1) / n x bytes / time, which is comparable for different
numbers of ranks n.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from wikillm.core.errors import MachineError
from wikillm.core.world import free_port

_START_SECONDS = 120.0  # enough to import torch on a busy machine


@dataclass(frozen=True, slots=True)
class AllReduce:
    bytes_per_second: float
    backend: str
    ranks: int

    def __str__(self) -> str:
        return f"{self.backend}, {self.ranks} ranks"


def measure_all_reduce(seconds: float) -> AllReduce | None:
    """Measure the all-reduce of this machine; None with a single GPU.

    Raises MachineError if the ranks fail or do not end in time.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 1:
        return None
    # Start the ranks.
    ranks = gpus or 2
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "wikillm.measure.collective", str(seconds)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen(
            command, env=environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, **pipes
        )
        for rank in range(ranks)
    ]
    # Wait for all of them. Rank 0 has printed the result.
    try:
        output = [process.communicate(timeout=_START_SECONDS + 2 * seconds) for process in running]
    except subprocess.TimeoutExpired:
        what = "The all-reduce between processes of this machine did not end."
        raise MachineError(what, got=f"{ranks} ranks") from None
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    for rank, process in enumerate(running):
        if process.returncode:
            last = "\n".join(output[rank][1].strip().splitlines()[-3:])
            what = "The all-reduce between processes of this machine failed."
            raise MachineError(what, got=f"rank {rank}: {process.returncode}\n{last}")
    return AllReduce(**json.loads(output[0][0].strip().splitlines()[-1]))


def main(seconds: float) -> None:
    """Run one rank of the measurement."""
    rank = int(os.environ["RANK"])
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=_START_SECONDS))
    try:
        world = dist.get_world_size()
        size = 256 << 20 if on_gpu else 16 << 20
        tensor = torch.ones(size // 4, device="cuda" if on_gpu else "cpu")
        until = time.monotonic() + seconds
        best = float("inf")
        go = torch.ones(1, device=tensor.device)
        while go.item():
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)  # the maximum of ones stays one
            if on_gpu:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
            go.fill_(float(time.monotonic() < until))
            dist.broadcast(go, 0)  # rank 0 decides, so all ranks make the same number of calls
    finally:
        dist.destroy_process_group()
    if rank == 0:
        bandwidth = 2 * (world - 1) / world * size / best
        sys.stdout.write(json.dumps(asdict(AllReduce(bandwidth, backend, world))) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]))
