"""Goes back to the newest checkpoint within the process: `Rewind`, and the memory it frees.

Process groups, supervision, the lock on the run directory and the TrainingArguments stay as they
are; model, engine, optimizer, trainer and callbacks are made again. No launcher, port or rendezvous
is needed, so a rewind works alike under torchrun, `deepspeed` and on several nodes.
"""

from __future__ import annotations

import gc

import torch
from accelerate.state import AcceleratorState

from wikillm.core.errors import ExitCode
from wikillm.train.trainer import WikiTrainer


class Rewind(Exception):
    """Raised on all ranks at the same step; `pretrain` catches it and trains from `resume`.

    Attributes:
        resume: a value of `--resume`. Rank 0's value counts, as rank 0 knows what was written.
    """

    exit_code = ExitCode.STOPPED  # shown in the tracker for this part of the run

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.resume = "never"


def release(trainer: WikiTrainer) -> None:
    """Free the engine and its hooks, and reset accelerate for a second engine. (all ranks)"""
    trainer.accelerator.free_memory()
    if trainer.context.engine.zero_stage == 3:
        _forget_modules()
    # accelerate refuses a second Accelerator while the first one's configuration exists.
    AcceleratorState._reset_state()


def _forget_modules() -> None:
    """Clear two records of DeepSpeed's ZeRO-3 that would keep the whole model in memory."""
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    coordinator = partitioned_param_coordinator.PartitionedParameterCoordinator
    for method in vars(coordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()


def collect() -> None:
    """Collect garbage and free GPU memory, once nothing refers to the last trainer any more."""
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
