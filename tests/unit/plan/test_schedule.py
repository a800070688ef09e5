"""The learning rate by formula equals that of Hugging Face's schedulers."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from wikillm.config.load import load
from wikillm.plan.run_plan import make_plan
from wikillm.plan.schedule import learning_rate_at
from wikillm.train.arguments import _scheduler_kwargs

KINDS = ["cosine", "cosine_with_min_lr", "linear", "constant", "constant_with_warmup"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 3])
def test_the_rate_equals_hugging_faces(kind: str, warmup: int) -> None:
    train = load(None, [f"train.lr_scheduler_type={kind}", "train.learning_rate=2e-3"]).config.train
    warmup = 0 if kind == "constant" else warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    more = {"min_lr_rate": train.min_lr_ratio} if kind == "cosine_with_min_lr" else None
    scheduler = get_scheduler(kind, optimizer, warmup, 20, scheduler_specific_kwargs=more)
    for step in range(1, 21):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_at(train, step, max_steps=20, warmup_steps=warmup) == pytest.approx(
            expected, abs=1e-12
        )
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("shape", ["1-sqrt", "linear"])
@pytest.mark.parametrize(("share", "decay"), [(0.2, 4), (0.21, 5), (1.0, 17)])
def test_warmup_stable_decay_equals_hugging_face(shape: str, share: float, decay: int) -> None:
    """By way of the arguments a run hands to Trainer; the rate of the last step is above 0."""
    words = ["train.lr_scheduler_type=warmup_stable_decay", f"train.lr_decay_type={shape}"]
    resolved = load(
        "demo",
        [*words, f"train.lr_decay_share={share}", "--max_steps", "20", "--warmup_steps", "3"],
    )
    train = resolved.config.train
    plan = make_plan(resolved, world_size=1, tokenizer_length=500, train_tokens=10**6)
    kwargs = _scheduler_kwargs(train, plan)
    assert kwargs == {"num_decay_steps": decay, "decay_type": shape}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train.learning_rate)
    scheduler = get_scheduler(
        train.lr_scheduler_type, optimizer, 3, 20, scheduler_specific_kwargs=kwargs
    )
    rates = []
    for step in range(1, 21):
        rates.append(learning_rate_at(train, step, max_steps=20, warmup_steps=3))
        assert rates[-1] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()
    assert (
        rates.count(train.learning_rate) == 20 - 3 - decay + 1
        and rates[0] == 0 < rates[-1] < rates[-2]
    )
