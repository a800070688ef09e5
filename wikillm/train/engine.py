"""DeepSpeed, or plain data parallel: what will run, resolved before anything is built."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from wikillm.config.deepspeed import read_deepspeed
from wikillm.config.deepspeed_resolve import resolve_deepspeed
from wikillm.config.foreign_variables import claim_environment
from wikillm.config.resolved import Resolved
from wikillm.config.schema import RunConfig
from wikillm.core.errors import ConfigError, MachineError
from wikillm.core.world import World
from wikillm.kernels.dispatch import check_float8
from wikillm.plan.batch import split_batch
from wikillm.plan.checkpoint import Written, checkpoint_bytes
from wikillm.plan.recipe import check_combinations, check_recipe, facts_of_run
from wikillm.plan.room import GpuRoom
from wikillm.plan.run_plan import Plan
from wikillm.train.arguments import Precision, resolve_precision


@dataclass(frozen=True, slots=True)
class Engine:
    """`json` is the whole DeepSpeed configuration without any "auto"; None means torch's DistributedDataParallel."""

    precision: Precision
    json: dict[str, Any] | None
    notes: tuple[str, ...]

    @property
    def zero_stage(self) -> int | None:
        return (
            None
            if self.json is None
            else int(self.json.get("zero_optimization", {}).get("stage", 0))
        )

    @property
    def name(self) -> str:
        return "data parallel" if self.json is None else f"DeepSpeed ZeRO-{self.zero_stage}"


def gpu_room(cfg: RunConfig, world: World) -> GpuRoom | None:
    """The smallest GPU of this node, None on a CPU: what bounds a micro-batch of auto."""
    if not torch.cuda.is_available():
        return None
    sizes = [
        torch.cuda.get_device_properties(index).total_memory
        for index in range(torch.cuda.device_count())
    ]
    return GpuRoom(min(sizes), world.local_size, resolve_precision(cfg.train.precision))


def bytes_per_checkpoint(cfg: RunConfig, plan: Plan, engine: Engine) -> int:
    """What one checkpoint of this run takes on the disk."""
    is_muon, has_average = cfg.train.optimizer == "muon", cfg.train.ema_decay > 0
    written = Written(engine.precision, engine.zero_stage, is_muon, has_average, plan.world_size)
    return checkpoint_bytes(cfg.model, plan.vocab_size, written)


def check_engine(cfg: RunConfig) -> None:
    """Refuse what cannot train on this machine, before hours of tokenising. (all ranks)

    Removes from the environment what other launchers left for the libraries. Raises ConfigError.
    """
    claim_environment(cfg, os.environ, has_gpu=torch.cuda.is_available())
    check_half_precision(cfg, has_gpu=torch.cuda.is_available())
    check_attention(cfg.model.attn_implementation, has_gpu=torch.cuda.is_available())
    check_flex(cfg)


def check_before_data(resolved: Resolved, world: World) -> None:
    """Refuse a batch that these ranks cannot split and a DeepSpeed JSON that is wrong, before hours of tokenising.

    Raises ConfigError.
    """
    split_batch(resolved, world.size)
    check_recipe(
        resolved,
        ranks=world.size,
        ranks_per_node=world.local_size,
        precision=resolve_precision(resolved.config.train.precision),
        has_gpu=torch.cuda.is_available(),
    )


def check_half_precision(cfg: RunConfig, *, has_gpu: bool) -> None:
    """Raises ConfigError for fp16 without DeepSpeed on a CPU, where Hugging Face would train in 32 bit."""
    if cfg.train.precision == "fp16" and cfg.deepspeed.config is None and not has_gpu:
        raise ConfigError(
            "fp16 does not train on a CPU.",
            got="train.precision=fp16, and torch sees no GPU",
            fix="train.precision=fp32, or train.precision=bf16",
        )


def check_attention(kernel: str, *, has_gpu: bool) -> None:
    """Raises ConfigError for a kernel without a backward pass on this device, or whose package is missing."""
    named, fix = f"model.attn_implementation={kernel}", "model.attn_implementation=sdpa"
    if kernel in ("flex_attention", "flash_attention_2") and not has_gpu:
        raise ConfigError(
            f"{kernel} does not train on a CPU.", got=f"{named}, and torch sees no GPU", fix=fix
        )
    if kernel == "flash_attention_2" and not any(map(find_spec, ("flash_attn", "kernels"))):
        what = f"{kernel} needs a package that is not installed."
        raise ConfigError(
            what, got=named, fix=f"pip install flash-attn, built for this torch; or {fix}"
        )


def resolve_engine(cfg: RunConfig, plan: Plan, world: World) -> Engine:
    """Check the DeepSpeed JSON against the run and fill every "auto" in.

    Raises ConfigError with all conflicts, MachineError where the layers cannot be compiled or 8-bit products do not run.
    """
    if cfg.train.compile != "off":
        check_compiler(cfg.train.compile)
    precision, has_gpu = resolve_precision(cfg.train.precision), torch.cuda.is_available()
    if cfg.train.loss_kernel == "fp8":
        device_type = "cuda" if has_gpu else "cpu"
        check_float8(hidden=cfg.model.hidden_size, vocab=plan.vocab_size, device_type=device_type)
    if cfg.deepspeed.config is None:
        if cfg.train.optimizer == "muon" and precision == "fp16":
            raise ConfigError(
                "Muon is not supported in fp16.",
                got="train.precision=auto, and this GPU has no bf16",
                fix="train.precision=fp32, or train.optimizer=adamw",
            )
        return Engine(precision, None, ())
    facts = facts_of_run(
        cfg,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        ranks=world.size,
        ranks_per_node=world.local_size,
        precision=precision,
        has_gpu=has_gpu,
    )
    resolved = resolve_deepspeed(read_deepspeed(cfg.deepspeed.config), facts)
    engine = Engine(precision, resolved.json, resolved.notes)
    check_combinations(cfg, resolved.json)
    if cfg.train.compile != "off" and cfg.train.optimizer == "muon" and not has_gpu:
        raise ConfigError(
            "train.compile does not go with DeepSpeed's Muon on CPU, which runs with compilation switched off.",
            got=f"train.compile={cfg.train.compile}, train.optimizer=muon, {cfg.deepspeed.config}",
            fix="train.compile=off, or leave out --deepspeed",
        )
    return engine


def check_flex(cfg: RunConfig) -> None:
    """Under autocast the rotation leaves queries and keys in 32 bit beside narrow values, which flex attention does not take.

    Raises ConfigError. DeepSpeed casts the model instead, so that all three are narrow. On a GPU, the only place where it trains,
    train.precision=auto is 16 bit.
    """
    is_autocast = cfg.deepspeed.config is None and cfg.train.precision != "fp32"
    if cfg.model.attn_implementation == "flex_attention" and is_autocast:
        raise ConfigError(
            "flex_attention does not train in 16 bit without DeepSpeed: its inputs would be of two types.",
            got=f"model.attn_implementation=flex_attention, train.precision={cfg.train.precision}",
            fix="--deepspeed zero0, or model.attn_implementation=sdpa",
        )


def check_compiler(asked: str) -> None:
    """torch.compile makes C++ on CPU, and Triton wants a C compiler for its launchers on GPUs."""
    wanted = (
        [os.environ.get("CXX"), "c++", "g++", "clang++"] if not torch.cuda.is_available() else []
    )
    wanted = wanted or [os.environ.get("CC"), "cc", "gcc", "clang"]
    if not any(name and shutil.which(name) for name in wanted):
        raise MachineError(
            f"train.compile={asked} needs a compiler, and there is none.",
            got=f"none of {', '.join(name for name in wanted if name)} in PATH",
            fix="apt-get install g++, or train.compile=off",
        )


def start_engine(world: World, engine: Engine) -> None:
    """What must be in place before TrainingArguments: variables of a lone process; on CPU, DeepSpeed's op and group.

    On a GPU accelerate makes DeepSpeed's process group. On CPU it makes torch's alone, and ZeRO-3, which partitions
    the model while it is built, would believe in a world of one. (all ranks)
    """
    if engine.json is None:
        return
    world.export()
    from wikillm.train import cpu_ops

    if torch.cuda.is_available():
        if world.local_rank == 0:
            cpu_ops.sweep_op_locks()
        return
    cpu_ops.use_cpu_accelerator()
    if world.local_rank == 0:
        cpu_ops.sweep_shared_memory()
    cpu_ops.check_shared_memory(world.local_size)
    cpu_ops.build_cpu_ops()
    if world.local_rank == 0:
        cpu_ops.sweep_op_locks()  # of other ops too, which DeepSpeed compiles when it meets them
    import deepspeed

    with contextlib.redirect_stdout(
        io.StringIO()
    ):  # it prints, on every rank, that its op was loaded
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    torch.distributed.barrier()
    cpu_ops.release_shared_memory()
