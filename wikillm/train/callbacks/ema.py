"""An exponential moving average of the weights over the tail of a run, saved with every checkpoint.

average = decay x average + (1 - decay) x weights after each optimizer step, in float32, from `start_step` on, where it
begins as the weights of that step (Polyak and Juditsky 1992, doi:10.1137/0330046).
Training never reads it. All ranks hold the same weights without ZeRO-3, so each rank averages its share of the tensors:
4 bytes per parameter over the ranks. Its part of a checkpoint is `ema/rank_N.safetensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wikillm.checkpoints.layout import AVERAGE, checkpoint_name
from wikillm.core.errors import CheckpointError
from wikillm.core.world import World
from wikillm.train.checkpoint_errors import saving


def share_of(model: nn.Module, rank: int, world_size: int) -> dict[str, nn.Parameter]:
    """The parameters a rank averages: every one has one rank, each rank about the same number of elements."""
    named = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in named.values())
    mine, before = {}, 0
    for name, parameter in named.items():
        if before * world_size // max(1, total) == rank:
            mine[name] = parameter
        before += parameter.numel()
    return mine


class EmaCallback(TrainerCallback):
    """Must stand before the callback that publishes checkpoints, and after the one that stops at NaN.

    Args:
        start_step: optimizer step whose weights the average begins with.
        checkpoint: the one to go on from; its average goes on where it has one.
    """

    def __init__(
        self, decay: float, start_step: int, world: World, staging: Path, checkpoint: Path | None
    ) -> None:
        self.decay, self.start_step, self.world, self.staging = decay, start_step, world, staging
        self.checkpoint = checkpoint
        self.average: dict[str, torch.Tensor] = {}
        self._weights: dict[str, nn.Parameter] = {}

    @property
    def file(self) -> Path:
        return Path(AVERAGE) / f"rank_{self.world.rank:05d}.safetensors"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._weights = share_of(kwargs["model"], self.world.rank, self.world.size)
        if self.checkpoint is None or not (self.checkpoint / AVERAGE).is_dir():
            return
        stored = load_file(self.checkpoint / self.file)
        if {name: t.shape for name, t in stored.items()} != {
            name: p.shape for name, p in self._weights.items()
        }:
            raise CheckpointError(
                "The average in the checkpoint is not of this model.", got=str(self.checkpoint)
            )
        self.average = {
            name: tensor.to(self._weights[name].device) for name, tensor in stored.items()
        }

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.average:
            if state.global_step >= self.start_step:
                self.average = {
                    name: weight.detach().float().clone() for name, weight in self._weights.items()
                }
            return
        for name, weight in self._weights.items():
            self.average[name].lerp_(weight.detach().float(), 1 - self.decay)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.average:
            return
        path = self.staging / checkpoint_name(state.global_step) / self.file
        with saving(self.staging, state.global_step):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in self.average.items()}, path)
