"""Count how often a training step reads a tensor value. On a GPU each read waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
from harness.observed_runs import train_counting_reads
from harness.tiny_run import run

# Steps between the first and the last. Those two also prepare or save.
STEPS = 6
LOGGED = {1, 4}


@pytest.mark.parametrize(
    ("recipe", "more", "every_step", "logging"),
    [
        # The loss and the gradient norm. On a GPU they are copied to the host beforehand.
        (None, (), 0, 2),
        (None, ("train.document_mask=on",), 0, 2),
        ("zero0", (), 0, 1),
        # DeepSpeed checks for infinities: once for the norm in fp32, and once per clipped group.
        ("zero2", (), 3, 5),
        ("zero3", ("train.max_grad_norm=0",), 1, 3),
    ],
)
def test_values_are_read_when_they_are_logged(
    recipe: str | None,
    more: tuple[str, ...],
    every_step: int,
    logging: int,
    words: Any,
    tmp_path: Any,
) -> None:
    of_run = (
        f"train.max_steps={STEPS}",
        "train.logging_steps=4",
        "train.save_steps=99",
        "train.eval_steps=99",
    )
    micro = "train.per_device_train_batch_size=2"  # 4 micro-steps
    found = run(
        1, words(tmp_path / "run", *of_run, micro, *more), train_counting_reads, deepspeed=recipe
    )
    assert found["code"] == 0, found["message"]
    reads = {step: found["reads"].get(step, 0) for step in range(1, STEPS)}
    assert reads == {step: logging if step in LOGGED else every_step for step in reads}
    assert found["unmoved"] == 0, "the Trainer moves tensors that it has to wait for"
