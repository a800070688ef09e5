"""The learning rate by formula equals what Hugging Face's own schedulers give."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from wikillm.config.load import load
from wikillm.plan.schedule import five_points, learning_rate_at

KINDS = ["cosine", "cosine_with_min_lr", "linear", "constant", "constant_with_warmup"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 3])
def test_equals_hugging_face(kind: str, warmup: int) -> None:
    train = load(None, [f"train.lr_scheduler_type={kind}", "train.learning_rate=2e-3"]).config.train
    warmup = 0 if kind == "constant" else warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    more = {"min_lr_rate": train.min_lr_ratio} if kind == "cosine_with_min_lr" else None
    scheduler = get_scheduler(kind, optimizer, warmup, 20, scheduler_specific_kwargs=more)
    for step in range(1, 21):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_at(train, step, max_steps=20, warmup_steps=warmup) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_five_points() -> None:
    train = load(None).config.train
    points = five_points(train, max_steps=1000, warmup_steps=100)
    assert list(points) == [1, 101, 500, 750, 1000]
    assert points[1] == 0 and points[101] == train.learning_rate == max(points.values())
    assert list(five_points(train, max_steps=1, warmup_steps=0)) == [1]
