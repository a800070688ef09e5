"""Chooses DeepSpeed or plain data parallel, and checks the choice before anything is built."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from wikillm.checkpoints.latest import find_complete
from wikillm.checkpoints.manifest import read_state
from wikillm.config.compatibility import Case, refuse_conflicts
from wikillm.config.deepspeed import DeepSpeedRun, read_deepspeed
from wikillm.config.deepspeed_resolve import resolve_deepspeed
from wikillm.config.environment_variables import RunNeeds, clean_environment
from wikillm.config.precision import Precision, resolve_precision
from wikillm.config.resolved import Resolved
from wikillm.config.schema import RunConfig
from wikillm.config.schema_train import TrainSection
from wikillm.core.errors import CheckpointError, ConfigError
from wikillm.core.world import World
from wikillm.kernels.dispatch import check_loss_kernel
from wikillm.measure.device import bf16_gain
from wikillm.plan.batch import split_batch
from wikillm.plan.check_recipe import check_recipe
from wikillm.plan.run_plan import Plan, RankGpu
from wikillm.train.op_locks import remove_stale_locks

WORTH_BF16 = 1.5
"""A CPU trains in bf16 if its bf16 products are at least this many times as fast as float32's.
Measured: above 2 with AVX512-BF16, below 1 without (docs/measurements/2026-11-28-cpu-bf16.md)."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The chosen engine and precision.

    Attributes:
        json: the DeepSpeed configuration without any "auto"; None for DistributedDataParallel.
        notes: changes to the DeepSpeed file's values, for the log.
    """

    precision: Precision
    json: dict[str, Any] | None
    notes: tuple[str, ...]

    @property
    def zero_stage(self) -> int | None:
        if self.json is None:
            return None
        return int(self.json.get("zero_optimization", {}).get("stage", 0))

    @property
    def name(self) -> str:
        return "data parallel" if self.json is None else f"DeepSpeed ZeRO-{self.zero_stage}"


def precision_here(wanted: Literal["auto", "bf16", "fp16", "fp32"]) -> Precision:
    """What `train.precision` means on this machine, by config/precision.py."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = wanted == "auto" and bf16_gain() >= WORTH_BF16
    return resolve_precision(wanted, has_gpu=has_gpu, has_bf16=has_bf16)


def with_precision_of(resume: str, checkpoints: Path, train: TrainSection) -> TrainSection:
    """On a CPU, replace `train.precision=auto` by the precision of the checkpoint to resume from.

    Another processor, or a version that had only fp32 on CPUs, may have chosen another precision.
    """
    if resume == "never" or train.precision != "auto" or torch.cuda.is_available():
        return train
    with contextlib.suppress(CheckpointError):  # a damaged checkpoint is refused when it is loaded
        checkpoint = find_complete(
            checkpoints if resume == "auto" else Path(resume), lambda _: None, quiet=True
        )
        recorded = read_state(checkpoint).get("precision")
        if recorded in ("bf16", "fp32"):  # anything else is refused with the checkpoint
            train = train.model_copy(update={"precision": recorded})
    return train


def gpu_of_rank(train: TrainSection, world: World) -> RankGpu | None:
    """The smallest GPU of this node, which bounds the micro-batch under auto; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    gpus = range(torch.cuda.device_count())
    smallest = min(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus)
    return RankGpu(smallest, world.local_size, precision_here(train.precision))


def check_engine(resolved: Resolved, world: World) -> None:
    """Check, before hours of tokenizing, that the settings agree and can train here. (all ranks)

    Also removes environment variables that other launchers set for the libraries. Raises
    ConfigError.
    """
    cfg = resolved.config
    has_gpu = torch.cuda.is_available()
    precision = precision_here(cfg.train.precision)
    compiles = cfg.train.compile != "off"
    clean_environment(os.environ, RunNeeds(cfg.train.precision, compiles, has_gpu))
    refuse_conflicts(Case(cfg.train, cfg.model, precision=precision, has_gpu=has_gpu))
    check_attention_package(cfg.model.attn_implementation)
    split_batch(cfg.train, resolved.origins, world.size)
    check_recipe(
        resolved,
        ranks=world.size,
        ranks_per_node=world.local_size,
        precision=precision,
        has_gpu=has_gpu,
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
    """Check the DeepSpeed JSON against the run and fill in every "auto".

    Raises ConfigError with all conflicts, MachineError where the loss kernel does not run.
    """
    precision = precision_here(cfg.train.precision)
    has_gpu = torch.cuda.is_available()
    check_loss_kernel(
        cfg.train.loss_kernel,
        hidden=cfg.model.hidden_size,
        vocab=plan.vocab_size,
        device_type="cuda" if has_gpu else "cpu",
    )
    if cfg.deepspeed.config is None:
        return Engine(precision, None, ())
    # The run's values fill in the JSON's "auto", and must agree with its other values.
    run = DeepSpeedRun(
        cfg.train,
        hidden_size=cfg.model.hidden_size,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        world_size=world.size,
        local_world_size=world.local_size,
        precision=precision,
        has_gpu=has_gpu,
    )
    resolved = resolve_deepspeed(read_deepspeed(cfg.deepspeed.config), run)
    return Engine(precision, resolved.json, resolved.notes)


def start_engine(world: World, engine: Engine) -> None:
    """Set up what DeepSpeed needs before TrainingArguments are made. (all ranks)

    On a GPU accelerate initialises DeepSpeed's process group. On a CPU it initialises only torch's:
    ZeRO-3, which partitions the model while it is built, would then assume a world of one.
    """
    if engine.json is None:
        return
    world.export()
    if world.local_rank == 0:
        remove_stale_locks()
    if torch.cuda.is_available():
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would guess it, with a warning
    import deepspeed

    # Leave out the all-reduce in shared memory that only DeepSpeed's inference uses: it compiles
    # for 40 s, and each rank of each run leaves 66 MiB in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
