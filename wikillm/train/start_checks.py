"""Checks that all ranks see the same world and folder, once the process group exists."""

from __future__ import annotations

import os
import platform
import time
import uuid
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

_VISIBLE_SECONDS = 20.0  # within this time a new file must appear on a network file system


def check_world(
    args: TrainingArguments, world: World, control: ControlGroup, precision: Precision
) -> None:
    """Check that launcher, torch.distributed and HF agree on ranks, micro-batch and precision.
    (all ranks)

    On a CPU, HF without `use_cpu` assumes a world of one and trains every sample on every rank.
    Raises MachineError.
    """
    # Compare what launcher, torch and HF say about this process.
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
    # Compare the ranks with each other.
    ranks = control.gather(args.process_index)
    if sorted(ranks) != list(range(world.size)):  # type: ignore[type-var]
        raise MachineError(
            "Two processes have the same rank.", got=f"ranks {ranks} in a world of {world.size}"
        )
    # Under auto, each rank has chosen for its own machine.
    chosen: list[Any] = control.gather((args.per_device_train_batch_size, precision))
    micro_batches, precisions = zip(*chosen, strict=True)
    for name, values, fix in (
        ("per_device_train_batch_size", micro_batches, min(micro_batches)),
        ("precision", precisions, "fp32, or bf16 where all GPUs have it"),
    ):
        if len(set(values)) > 1:
            raise MachineError(
                f"The ranks chose differently for train.{name}=auto: their machines differ.",
                got=f"by rank: {', '.join(map(str, values))}",
                fix=f"train.{name}={fix}",
            )


def check_shared_folder(run: RunDir, world: World, control: ControlGroup) -> dict[str, Any]:
    """Check that every rank sees the folder that rank 0 saves checkpoints in. (all ranks)

    The check uses a new file, since a copy of the folder on a node's own disk has the old files.

    Returns:
        The run's identity, the same on every rank.

    Raises MachineError, which names the ranks without access.
    """
    # Rank 0 makes a new file; every rank looks for it, and for rank 0's identity of the run.
    name: Any = control.gather(f"start-{uuid.uuid4().hex}")[0]
    mark = run.staging / name
    if world.is_main:
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    control.barrier()  # a network file system may cache that a file does not exist
    identity: Any = control.gather(read_object(run.identity))[0]
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not (sees := mark.exists() and read_object(run.identity) == identity):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    # Agree on the ranks that do not see them.
    found: list[Any] = control.gather((sees, platform.node()))
    if world.is_main:
        mark.unlink(missing_ok=True)
    blind = [f"rank {rank} on {node}" for rank, (ok, node) in enumerate(found) if not ok]
    if blind:
        raise MachineError(
            f"{run.checkpoints} is not the same folder on every node.",
            got=f"{', '.join(blind)} does not see what rank 0 on {found[0][1]} writes there",
            fix="put run.dir on a file system that all nodes share: all ranks write into one "
            "checkpoint, so separate disks of the nodes do not work",
        )
    return dict(identity)


def limit_threads(world: World, cpu_count: int) -> None:
    """On a CPU, divide the cores over this node's ranks; by default each rank would use all.

    An OMP_NUM_THREADS that is set already stays.
    """
    if torch.cuda.is_available() or "OMP_NUM_THREADS" in os.environ:
        return
    threads = max(1, cpu_count // world.local_size)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate warns when it is not set
    torch.set_num_threads(threads)
