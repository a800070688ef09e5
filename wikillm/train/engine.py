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

from wikillm.config.compatibility import Case, refuse_conflicts
from wikillm.config.deepspeed import DeepSpeedFacts, read_deepspeed
from wikillm.config.deepspeed_resolve import resolve_deepspeed
from wikillm.config.environment_variables import RunNeeds, clean_environment
from wikillm.config.precision import Precision
from wikillm.config.resolved import Resolved
from wikillm.config.schema import RunConfig
from wikillm.core.errors import ConfigError, MachineError
from wikillm.core.world import World
from wikillm.kernels.dispatch import check_loss_kernel
from wikillm.plan.batch import split_batch
from wikillm.plan.checkpoint import Written, checkpoint_bytes
from wikillm.plan.recipe import check_recipe
from wikillm.plan.run_plan import Plan, RankGpu
from wikillm.train.arguments import precision_here


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


def gpu_of_rank(cfg: RunConfig, world: World) -> RankGpu | None:
    """The smallest GPU of this node, None on a CPU: what bounds a micro-batch of auto."""
    if not torch.cuda.is_available():
        return None
    sizes = [
        torch.cuda.get_device_properties(index).total_memory
        for index in range(torch.cuda.device_count())
    ]
    return RankGpu(min(sizes), world.local_size, precision_here(cfg.train.precision))


def bytes_per_checkpoint(cfg: RunConfig, plan: Plan, engine: Engine) -> int:
    """What one checkpoint of this run takes on the disk."""
    is_muon, has_average = cfg.train.optimizer == "muon", cfg.train.ema_decay > 0
    written = Written(engine.precision, engine.zero_stage, is_muon, has_average, plan.world_size)
    return checkpoint_bytes(cfg.model, plan.vocab_size, written)


def check_engine(cfg: RunConfig) -> None:
    """Refuse what cannot train on this machine, before hours of tokenising. (all ranks)

    Removes from the environment what other launchers left for the libraries. Raises ConfigError.
    """
    has_gpu = torch.cuda.is_available()
    compiles = cfg.train.compile != "off"
    clean_environment(os.environ, RunNeeds(cfg.train.precision, compiles, has_gpu))
    refuse_conflicts(
        Case(
            cfg.train,
            cfg.model,
            has_deepspeed=cfg.deepspeed.config is not None,
            precision=precision_here(cfg.train.precision),
            has_gpu=has_gpu,
        )
    )
    check_attention_package(cfg.model.attn_implementation)


def check_before_data(resolved: Resolved, world: World) -> None:
    """Refuse a batch that these ranks cannot split and a DeepSpeed JSON that is wrong, before hours of tokenising.

    Raises ConfigError.
    """
    split_batch(resolved.config.train, resolved.origins, world.size)
    check_recipe(
        resolved,
        ranks=world.size,
        ranks_per_node=world.local_size,
        precision=precision_here(resolved.config.train.precision),
        has_gpu=torch.cuda.is_available(),
    )


def check_attention_package(kernel: str) -> None:
    """Raises ConfigError for a kernel whose package is missing."""
    if kernel == "flash_attention_2" and not any(map(find_spec, ("flash_attn", "kernels"))):
        raise ConfigError(
            f"{kernel} needs a package that is not installed.",
            got=f"model.attn_implementation={kernel}",
            fix="pip install flash-attn, built for this torch; or model.attn_implementation=sdpa",
        )


def resolve_engine(cfg: RunConfig, plan: Plan, world: World) -> Engine:
    """Check the DeepSpeed JSON against the run and fill every "auto" in.

    Raises ConfigError with all conflicts, MachineError where the layers cannot be compiled or the loss kernel does not run.
    """
    if cfg.train.compile != "off":
        check_compiler(cfg.train.compile)
    precision, has_gpu = precision_here(cfg.train.precision), torch.cuda.is_available()
    check_loss_kernel(
        cfg.train.loss_kernel,
        hidden=cfg.model.hidden_size,
        vocab=plan.vocab_size,
        device_type="cuda" if has_gpu else "cpu",
    )
    if cfg.deepspeed.config is None:
        return Engine(precision, None, ())
    facts = DeepSpeedFacts(
        cfg.train,
        hidden_size=cfg.model.hidden_size,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        world_size=world.size,
        local_world_size=world.local_size,
        precision=precision,
        has_gpu=has_gpu,
    )
    resolved = resolve_deepspeed(read_deepspeed(cfg.deepspeed.config), facts)
    return Engine(precision, resolved.json, resolved.notes)


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
