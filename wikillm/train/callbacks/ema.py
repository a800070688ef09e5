"""An exponential moving average of the weights over the tail of a run, saved with each checkpoint.

average = decay x average + (1 - decay) x weights after each optimizer step, in float32. It starts
as the weights of `start_step` (Polyak and Juditsky 1992, doi:10.1137/0330046). Training never reads
it. Without ZeRO-3 all ranks hold the same weights, so each rank averages its share of the tensors:
4 bytes per parameter over the ranks. Its part of a checkpoint is `ema/rank_N.safetensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerState

from wikillm.checkpoints.layout import AVERAGE, checkpoint_name
from wikillm.core.errors import CheckpointError
from wikillm.core.world import World
from wikillm.train.checkpoint_errors import saving


def share_of(model: nn.Module, rank: int, world_size: int) -> dict[str, nn.Parameter]:
    """The parameters that a rank averages: each belongs to one rank, with about equal elements."""
    named = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in named.values())
    share = {}
    before = 0
    for name, parameter in named.items():
        if before * world_size // max(1, total) == rank:
            share[name] = parameter
        before += parameter.numel()
    return share


class EmaCallback(TrainerCallback):
    """Comes before the callback that publishes checkpoints, and after the one that stops at NaN.

    Args:
        start_step: optimizer step whose weights the average starts with.
        checkpoint: the one to resume from; its average is continued where it has one.
    """

    def __init__(
        self, decay: float, start_step: int, world: World, staging: Path, checkpoint: Path | None
    ) -> None:
        self.decay = decay
        self.start_step = start_step
        self.world = world
        self.staging = staging
        self.checkpoint = checkpoint
        self.file = Path(AVERAGE) / f"rank_{world.rank:05d}.safetensors"
        self.average: dict[str, torch.Tensor] = {}
        self._weights: dict[str, nn.Parameter] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._weights = share_of(kwargs["model"], self.world.rank, self.world.size)
        if self.checkpoint is None or not (self.checkpoint / AVERAGE).is_dir():
            return
        stored = load_file(self.checkpoint / self.file)
        shapes = {name: weight.shape for name, weight in self._weights.items()}
        if {name: tensor.shape for name, tensor in stored.items()} != shapes:
            raise CheckpointError(
                "The average in the checkpoint is not of this model.", got=str(self.checkpoint)
            )
        self.average = {n: tensor.to(self._weights[n].device) for n, tensor in stored.items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self.average:
            for name, weight in self._weights.items():
                self.average[name].lerp_(weight.detach().float(), 1 - self.decay)
        elif state.global_step >= self.start_step:
            self.average = {
                n: weight.detach().float().clone() for n, weight in self._weights.items()
            }

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if not self.average:
            return
        path = self.staging / checkpoint_name(state.global_step) / self.file
        with saving(self.staging, state.global_step):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in self.average.items()}, path)
