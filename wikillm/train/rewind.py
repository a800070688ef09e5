"""Going back to the newest checkpoint within the process: `Rewind`, and what it frees.

Process groups, supervision, the lock on the run directory and the TrainingArguments stay as they
are; model, engine, optimizer, trainer and callbacks are made again. So no launcher, port or
rendezvous takes part, and it is the same under torchrun, `deepspeed` and on several nodes.
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
        resume: as on the command line. Rank 0's counts; it knows what this start has written.
    """

    exit_code = ExitCode.STOPPED  # of this part of the run, in the tracker

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.resume = "never"


def release(trainer: WikiTrainer) -> None:
    """Free the engine and its hooks, and let accelerate begin a second one. (all ranks)"""
    trainer.accelerator.free_memory()
    if trainer.context.engine.zero_stage == 3:
        _forget_modules()
    # accelerate refuses a second Accelerator beside the configuration of the first.
    AcceleratorState._reset_state()


def _forget_modules() -> None:
    """Two records of DeepSpeed's ZeRO-3 outlive its engine, and keep all of the model in memory."""
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    coordinator = partitioned_param_coordinator.PartitionedParameterCoordinator
    for method in vars(coordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()


def collect() -> None:
    """Give memory back, once nothing refers to the last trainer any more."""
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
