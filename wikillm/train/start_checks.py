"""Checks after the process group was made: do all ranks see the same world and folder?"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from wikillm.config.precision import Precision
from wikillm.core.errors import MachineError
from wikillm.core.files import read_object
from wikillm.core.world import World
from wikillm.train.collectives import ControlGroup
from wikillm.train.run_dir import RunDir

_VISIBLE_SECONDS = 20.0  # seconds until a new file must be visible on a network file system


@dataclass(frozen=True, slots=True)
class Choices:
    """What each rank chose for its own machine, and must be the same on all."""

    micro_batch: int
    precision: Precision


def check_world(
    args: TrainingArguments, world: World, control: ControlGroup, choices: Choices
) -> None:
    """Check that launcher, torch.distributed and HF agree on ranks, micro-batch and precision.
    (all ranks)

    On a CPU, HF without `use_cpu` assumes a world of one on every rank and trains every sample once
    per rank. Raises MachineError.
    """
    group_size = dist.get_world_size() if dist.is_initialized() else 1
    group_rank = dist.get_rank() if dist.is_initialized() else 0
    views = {
        "the launcher's environment": (world.rank, world.size),
        "torch.distributed": (group_rank, group_size),
        "Hugging Face's TrainingArguments": (args.process_index, args.world_size),
    }
    if len(set(views.values())) > 1:
        raise MachineError(
            "The parts of the stack disagree about this process's rank and the world size.",
            got="\n".join(f"{who}: rank {rank} of {size}" for who, (rank, size) in views.items()),
            fix="start with `deepspeed train.py ...` or `torchrun --nproc_per_node N train.py ...`",
        )
    ranks = control.gather(args.process_index)
    if sorted(ranks) != list(range(world.size)):  # type: ignore[type-var]
        raise MachineError(
            "Two processes have the same rank.", got=f"ranks {ranks} in a world of {world.size}"
        )
    sizes: list[Any] = control.gather(choices.micro_batch)
    if len(set(sizes)) > 1:  # auto, on nodes whose GPUs differ in memory
        raise MachineError(
            "The ranks chose different micro-batches for train.per_device_train_batch_size=auto: "
            "their GPUs differ.",
            got=f"sequences by rank: {sizes}",
            fix=f"train.per_device_train_batch_size={min(sizes)}",
        )
    precisions: list[Any] = control.gather(choices.precision)
    if len(set(precisions)) > 1:
        raise MachineError(
            "The ranks chose different precisions for train.precision=auto: their machines differ.",
            got=f"by rank: {', '.join(precisions)}",
            fix="train.precision=fp32, or bf16 where all GPUs have it",
        )


def check_shared_folder(run: RunDir, control: ControlGroup) -> dict[str, Any]:
    """Check that every rank sees the run directory that rank 0 made. (all ranks)

    Returns:
        The run's identity, the same on every rank. Raises MachineError.
    """
    identity = read_object(run.identity)
    deadline = time.monotonic() + _VISIBLE_SECONDS
    expected: Any = control.gather(identity)[0]
    while identity != expected and time.monotonic() < deadline:
        time.sleep(0.2)
        identity = read_object(run.identity)
    blind = [rank for rank, ok in enumerate(control.gather(identity == expected)) if not ok]
    if blind:
        raise MachineError(
            f"The run directory {run.path} is not the same folder on every node.",
            got=f"rank 0 wrote {run.identity.name}, and ranks {blind} do not see it",
            fix="put run.dir on a file system that all nodes share",
        )
    return dict(expected)


def limit_threads(world: World, cpu_count: int) -> None:
    """On a CPU, divide the cores over this node's ranks; by default each rank would use all.

    An OMP_NUM_THREADS that is set already stays.
    """
    if torch.cuda.is_available() or "OMP_NUM_THREADS" in os.environ:
        return
    threads = max(1, cpu_count // world.local_size)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate warns when it is not set
    torch.set_num_threads(threads)
