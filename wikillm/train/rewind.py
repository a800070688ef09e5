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
    # accelerate refuses a second Accelerator beside the configuration of the first.
    AcceleratorState._reset_state()


def collect() -> None:
    """Give memory back, once nothing refers to the last trainer any more."""
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
