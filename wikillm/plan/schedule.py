"""The learning rate of a step by formula, equal to that of Hugging Face's schedulers.

Step k (from 1) uses the scheduler's value after k - 1 steps: the first step of a warm-up has rate
0.
"""

from __future__ import annotations

import math
from fractions import Fraction

from wikillm.config.schema_train import TrainSection


def learning_rate_at(train: TrainSection, step: int, *, max_steps: int, warmup_steps: int) -> float:
    """The rate that optimizer step `step` (1 to `max_steps`) uses."""
    done = step - 1
    kind = train.lr_scheduler_type
    if done < warmup_steps and kind != "constant":
        return train.learning_rate * done / warmup_steps
    if kind in ("constant", "constant_with_warmup"):
        return train.learning_rate
    if kind == "warmup_stable_decay":
        decay = decay_steps(train, max_steps=max_steps, warmup_steps=warmup_steps)
        progress = max(0, done - (max_steps - decay)) / max(1, decay)
        lost = math.sqrt(progress) if train.lr_decay_type == "1-sqrt" else progress
        return train.learning_rate * (1 - lost)
    progress = (done - warmup_steps) / max(1, max_steps - warmup_steps)
    if kind == "linear":
        return train.learning_rate * max(0.0, 1 - progress)
    factor = 0.5 * (1 + math.cos(math.pi * progress))
    if kind == "cosine_with_min_lr":
        factor = factor * (1 - train.min_lr_ratio) + train.min_lr_ratio
    return train.learning_rate * factor


def decay_steps(train: TrainSection, *, max_steps: int, warmup_steps: int) -> int:
    """Decay steps of warmup_stable_decay: its share of all steps, rounded up, after the warm-up.

    The decay would end one step after the last step, so that the last step has a rate above 0.
    """
    # A decimal fraction: 0.2 x 15 is 3, not 4.
    share = math.ceil(Fraction(str(train.lr_decay_share)) * max_steps)
    return min(share, max_steps - warmup_steps)


def five_points(train: TrainSection, *, max_steps: int, warmup_steps: int) -> dict[int, float]:
    """{step: rate} at the first step, the peak, half, three quarters, and the last step."""
    points = (1, warmup_steps + 1, max_steps // 2, max_steps * 3 // 4, max_steps)
    steps = sorted({min(max(1, point), max_steps) for point in points})
    return {
        step: learning_rate_at(train, step, max_steps=max_steps, warmup_steps=warmup_steps)
        for step in steps
    }
