"""Writes RUN/outcome.json at the horizon: predicted and measured memory and speed."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import torch

from wikillm.core.errors import ConfigError
from wikillm.core.files import write_json
from wikillm.core.world import World
from wikillm.plan.calibration import apply_calibration, cpu_as_device, read_calibration
from wikillm.plan.communication import communication_per_step
from wikillm.plan.gpus import Gpu, gpu_by_driver_name
from wikillm.plan.memory import Memory, memory_per_rank
from wikillm.plan.outcome import FILE_NAME
from wikillm.plan.roofline import default_mfu
from wikillm.plan.run_plan import Plan
from wikillm.plan.strategy import Strategy, strategy_of
from wikillm.plan.time import step_time
from wikillm.plan.workload import Workload
from wikillm.train.context import RunContext

MEMORY_BASIS = {
    "gpu": "torch.cuda.max_memory_allocated",
    "cpu": "VmHWM less resident memory after import",
}
"""How the memory was measured, by device."""


def record_outcome(context: RunContext, tokens_per_second: float | None) -> None:
    """Write predicted and measured peak memory and speed. (all ranks)"""
    # Measure on every rank; rank 0 writes.
    peak = context.peak
    world = context.world
    engine = context.engine
    plan = context.plan
    peaks: list[Any] = context.group.gather((peak.training, peak.whole))
    if not world.is_main:
        return
    # Predict with the settings as they were trained, on this device.
    cfg = context.resolved.config
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    workload = Workload(cfg.model, plan.vocab_size, plan.sequence_length)
    strategy = None
    with suppress(ConfigError):  # the DeepSpeed JSON may have been removed since the start
        strategy = strategy_of(
            cfg.model,
            cfg.train,
            cfg.deepspeed.config,
            ranks=world.size,
            ranks_per_node=world.local_size,
            micro=plan.micro_batch,
            accumulation=plan.accumulation,
            precision=engine.precision,
            device="cuda" if on_gpu else "cpu",
        )
    # There are no formulas for 16 bit on a CPU: the prediction is then None.
    has_formula = on_gpu or engine.precision == "fp32"
    memory = memory_per_rank(workload, strategy) if strategy and has_formula else None
    speed = _speed(workload, plan, strategy, world, device) if strategy and has_formula else None
    outcome = {
        "setup": _setup(context, device),
        "predicted": {
            "memory_bytes": comparable_bytes(memory, on_gpu=on_gpu) if memory else None,
            "memory_parts": memory.parts() if memory else None,
            "tokens_per_second": speed,
        },
        "measured": {
            "memory_bytes": max(training for training, _ in peaks),
            "memory_bytes_with_checkpoints_and_evaluation": max(whole for _, whole in peaks),
            "tokens_per_second": tokens_per_second,
        },
        "basis": MEMORY_BASIS["gpu" if on_gpu else "cpu"],
        "cpus": os.cpu_count(),
    }
    with suppress(OSError):
        write_json(context.run.path / FILE_NAME, outcome)


def _setup(context: RunContext, device: str) -> dict[str, Any]:
    """The settings that memory and speed depend on."""
    plan = context.plan
    engine = context.engine
    train = context.resolved.config.train
    return {
        "device": device,
        "engine": engine.name.replace("DeepSpeed ", "").replace("data parallel", "DDP"),
        "ranks": context.world.size,
        "parameters": plan.parameters,
        "precision": engine.precision,
        "per_device_train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "sequence_length": plan.sequence_length,
        "vocab_size": plan.vocab_size,
        "mlp_kernel": train.mlp_kernel,
        "sequence_parallel_size": plan.sequence_parallel_size,
        "gradient_checkpointing": train.gradient_checkpointing,
    }


def comparable_bytes(memory: Memory, *, on_gpu: bool) -> int:
    """The planned bytes that the measurement covers: torch's peak excludes the CUDA context."""
    return memory.allocated if on_gpu else memory.total


def _speed(
    workload: Workload, plan: Plan, strategy: Strategy, world: World, device: str
) -> float | None:
    """Predicted tokens/s over all ranks; None for an uncalibrated CPU or an unknown GPU."""
    known = read_calibration()
    gpu: Gpu | None = None
    if strategy.device != "cpu":
        gpu = gpu_by_driver_name(device)
        gpu = apply_calibration(gpu, known) if gpu else None
    elif known is not None and known.kind == "cpu":
        gpu = cpu_as_device(known, world.local_size, 0)
    if gpu is None:
        return None
    mfu = default_mfu(workload, strategy, gpu)
    traffic = communication_per_step(workload, strategy)
    time = step_time(workload, strategy, traffic, gpu, mfu=mfu)
    return plan.global_batch_tokens / time.total
