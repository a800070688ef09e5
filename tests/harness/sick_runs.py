"""Runs with a loss that goes wrong in chosen micro-batches, injected from outside the code."""

from __future__ import annotations

from typing import Any

from harness.programs import train


def scale_losses(factors: dict[tuple[int, int, int], float]) -> None:
    """Multiply the loss of (step from 0, rank, micro-step), before its backward pass.

    -1 for the rank or the micro-step means every one.
    """
    from wikillm.train.trainer import WikiTrainer

    original = WikiTrainer.compute_loss
    counted: dict[int, int] = {}

    def compute_loss(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        step = self.state.global_step
        micro_step = counted.get(step, 0)
        counted[step] = micro_step + 1
        rank = self.context.world.rank
        loss = original(self, *args, **kwargs)
        for (at, on_rank, on_micro), factor in factors.items():
            if at == step and on_rank in (rank, -1) and on_micro in (micro_step, -1):
                loss = loss * factor
        return loss

    WikiTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def train_with_losses(
    words: list[str], factors: dict[tuple[int, int, int], float], options: dict[str, Any]
) -> dict[str, Any]:
    """Run `train` with `scale_losses`."""
    scale_losses(factors)
    return train(words, **options)


def flip_bit(step: int, rank: int, bit: int) -> None:
    """Flip one bit of a weight of `rank` after the update of `step` (from 1)."""
    import torch
    from transformers.trainer_callback import CallbackHandler

    original = CallbackHandler.on_step_end

    def on_step_end(self: CallbackHandler, args: Any, state: Any, control: Any) -> Any:
        if state.global_step == step and args.process_index == rank:
            weight = dict(self.model.named_parameters())["model.layers.1.mlp.down_proj.weight"]
            words = weight.detach().view(-1).view(torch.int32)
            words[100] ^= 1 << bit
        return original(self, args, state, control)

    CallbackHandler.on_step_end = on_step_end  # type: ignore[method-assign]


def train_with_a_flipped_bit(
    words: list[str], where: tuple[int, int, int], options: dict[str, Any]
) -> dict[str, Any]:
    """Run `train` with `flip_bit` of (step, rank, bit)."""
    flip_bit(*where)
    return train(words, **options)
