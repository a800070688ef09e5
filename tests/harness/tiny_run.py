"""A run that is small enough to repeat a dozen times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.programs import train_with_options
from harness.ranks import run_ranks

TINY = [
    "data.tokenizer=train:600", "data.min_val_tokens=500", "data.val_fraction=0.1",
    "data.workers=1", "model.preset=tiny", "model.hidden_size=32", "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2", "model.intermediate_size=64",
    "train.sequence_length=32", "train.global_batch_tokens=256",
    "train.per_device_train_batch_size=4", "train.max_steps=8", "train.warmup_steps=2",
    "train.learning_rate=1e-2", "train.logging_steps=1", "train.precision=fp32",
    "train.save_steps=4", "train.eval_steps=8", "train.max_eval_tokens=2000",
    "observe.swanlab.mode=disabled", "observe.sample_prompts=[]",
]  # fmt: skip

Words = Callable[..., list[str]]  # words(run_dir, "train.x=y", ...): arguments of a tiny run


def tiny_words(corpus: Path, store: Path) -> Words:
    """Arguments for tiny runs on `corpus` with a common store. Later words replace earlier ones."""

    def build(run_dir: Path, *more: str) -> list[str]:
        replaced = {word.split("=")[0] for word in more}
        base = [word for word in TINY if word.split("=")[0] not in replaced]
        return [f"data.path={corpus}", f"data.store={store}", *base, f"run.dir={run_dir}", *more]

    return build


def run(
    world: int, words: list[str], program: Callable[..., Any] = train_with_options, **options: Any
) -> dict[str, Any]:
    """Run a program of `harness.programs`. Return rank 0's result; all exit codes must be equal."""
    results = run_ranks(program, world, words, options)
    assert len({result["code"] for result in results}) == 1, [
        result["message"] for result in results
    ]
    return dict(results[0])
