"""A resumed run uses the rates, intervals and kernels of its command line, as read from inside."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from harness.resume_programs import train_noting_settings
from harness.tiny_run import run

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.config.load import load
from wikillm.config.resolved import typed_form
from wikillm.observe.sinks import read_metrics, read_records
from wikillm.plan.schedule import learning_rate_at
from wikillm.train.resume_keys import APPLIED, ON_RESUME

OPTIMIZER = {
    "train.learning_rate": 2e-3,
    "train.weight_decay": 0.3,
    "train.adam_beta1": 0.8,
    "train.adam_beta2": 0.9,
    "train.adam_epsilon": 1e-6,
    "train.warmup_steps": 4,
    "train.lr_scheduler_type": "warmup_stable_decay",
    "train.lr_decay_share": 0.4,
    "train.lr_decay_type": "1-sqrt",
}
CLIPPING = {"train.max_grad_norm": 0.5}
MUON = {
    "train.muon_learning_rate": 0.005,
    "train.muon_momentum": 0.9,
    "model.final_norm_init": 0.125,  # the last norm's rate is half of AdamW's
}
TIMES = {
    "train.logging_steps": 2,
    "train.eval_steps": 3,
    "train.save_steps": 3,
    "train.save_total_limit": 5,
    "train.keep_every_steps": 6,
    "train.keep_best": 2,
    "train.max_eval_tokens": 1000,
    "train.max_hours": 30.0,
    "train.max_skipped_steps": 7,
    "train.max_skips": 4,
    "train.spikes": "skip",
    "train.spike_window": 40,
    "train.spike_threshold": 20.0,
    "train.weight_check_steps": 3,
    "train.self_check": "off",
    "observe.sample_steps": 4,
    "observe.sample_prompts": ("the",),
    "observe.sample_tokens": 3,
}
KERNELS = {
    "train.per_device_train_batch_size": 2,
    "train.per_device_eval_batch_size": 3,
    "train.gradient_checkpointing": "full",
    "train.loss_kernel": "stock",
    "train.mlp_kernel": "tiled",
    "model.attn_implementation": "eager",
    "model.max_position_embeddings": 64,
}
ELSEWHERE = {
    # a schedule other than the one above: test_every_type_of_schedule_applies_from_the_first_step
    "train.min_lr_ratio",
    "train.max_micro_batch_tokens",  # test_the_derived_micro_batch_follows_this_start
    "train.sequence_parallel_size",  # several ranks: test_sequence_parallel_runs
    "train.compile",  # compiles for a minute before it opens the checkpoint: test_equal_runs
    # test_eval_task_runs
    *("train.eval_tasks", "train.eval_tasks_steps", "train.eval_tasks_budget"),
    "deepspeed.config",  # test_another_deepspeed_file_of_the_same_stage_applies
}


def typed(changes: dict[str, Any]) -> list[str]:
    return [f"{key}={typed_form(value)}" for key, value in changes.items()]


@pytest.fixture(scope="module")
def stopped(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`stopped(recipe, optimizer)`: a run stopped after step 2 of 8, created once for each."""
    made: dict[tuple[str | None, str], Path] = {}

    def get(recipe: str | None, optimizer: str) -> Path:
        if (recipe, optimizer) not in made:
            folder = tmp_path_factory.mktemp("stopped") / "run"
            result = run(1, words(folder, *base(optimizer)), deepspeed=recipe, signal_at=1)
            assert result["code"] == 75, result["message"]
            made[recipe, optimizer] = folder
        return made[recipe, optimizer]

    return get


def base(optimizer: str) -> list[str]:
    more = ["train.max_grad_norm=0"] if optimizer == "muon" else []
    return [f"train.optimizer={optimizer}", "train.lr_scheduler_type=cosine", *more]


def resume(
    stopped: Any,
    words: Any,
    folder: Path,
    changes: dict[str, Any],
    recipe: str | None = None,
    optimizer: str = "adamw",
) -> dict[str, Any]:
    shutil.copytree(stopped(recipe, optimizer), folder)
    kept = [word for word in base(optimizer) if word.split("=")[0] not in changes]
    line = words(folder, *kept, *typed(changes))
    return run(1, line, train_noting_settings, deepspeed=recipe, resume="auto")


def test_every_applied_key_has_a_run_that_shows_it() -> None:
    applied = {key for key, role in ON_RESUME.items() if role == APPLIED}
    assert applied == {*OPTIMIZER, *CLIPPING, *MUON, *TIMES, *KERNELS, *ELSEWHERE}


@pytest.mark.parametrize(
    ("recipe", "optimizer"),
    [
        (None, "adamw"),
        pytest.param("zero0", "adamw", marks=pytest.mark.deep),
        ("zero2", "adamw"),
        ("zero3", "adamw"),
        (None, "muon"),
        ("zero2", "muon"),
    ],
)
def test_new_optimizer_and_schedule_settings_apply_from_the_first_step(
    recipe: str | None, optimizer: str, stopped: Any, words: Any, tmp_path: Path
) -> None:
    more = MUON if optimizer == "muon" else CLIPPING
    found = resume(stopped, words, tmp_path / "run", OPTIMIZER | more, recipe, optimizer)
    assert found["code"] == 0, found["message"]
    train = load(None, typed(OPTIMIZER | {"train.max_steps": 8})).config.train
    rate = learning_rate_at(train, 3, max_steps=8, warmup_steps=4)
    assert any(group["weight_decay"] == 0.3 for group in found["groups"]), "decay of matrices"
    assert any(group["weight_decay"] == 0.0 for group in found["groups"]), "norms stay exempt"
    for group, base_rate in zip(found["groups"], found["base_rates"], strict=True):
        if group.get("use_muon"):
            assert (base_rate, group["initial_lr"], group["momentum"]) == (0.005, 0.005, 0.9)
            assert group["lr"] == pytest.approx(rate / 2e-3 * 0.005)
        else:
            assert (group["initial_lr"], group["eps"]) == (base_rate, 1e-6)
            assert tuple(group["betas"]) == (0.8, 0.9)
            assert group["lr"] == pytest.approx(rate / 2e-3 * base_rate)
    by_adam = {
        base_rate
        for group, base_rate in zip(found["groups"], found["base_rates"], strict=True)
        if not group.get("use_muon")
    }
    assert by_adam == ({2e-3, 1e-3} if optimizer == "muon" else {2e-3}), "rates of AdamW's groups"
    assert found["clips"] == [0.5 if optimizer == "adamw" else 0.0] * len(found["clips"])
    logged = {
        record["step"]: record["learning_rate"]
        for record in read_metrics(tmp_path / "run" / "metrics.jsonl")
    }
    wanted = {
        step: learning_rate_at(train, step, max_steps=8, warmup_steps=4) for step in range(3, 9)
    }
    assert {step: logged[step] for step in wanted} == pytest.approx(wanted)
    for line in (
        "learning_rate 0.01 -> 0.002",
        "weight_decay 0.1 -> 0.3",
        "adam_beta1 0.9 -> 0.8",
        "warmup_steps 2 -> 4",
    ):
        assert f"changed on resume: {line}\n" in found["output"]


def test_new_intervals_and_kernels_apply(stopped: Any, words: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = TIMES | KERNELS
    found = resume(stopped, words, folder, changes)
    assert found["code"] == 0, found["message"]
    assert [
        path.name.removeprefix("checkpoint-") for path in list_checkpoints(folder / "checkpoints")
    ] == ["8", "6", "3", "2"]
    assert [step for step in found["losses"] if step > 2] == [4, 6, 8]
    events = read_records(folder / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "eval"] == [3, 6, 8]
    for key, value in changes.items():
        name = key.split(".", 1)[1]
        if name in found:
            assert found[name] == (list(value) if isinstance(value, tuple) else value), key
        assert f"changed on resume: {key.removeprefix('train.')} " in found["output"], key
    assert found["model"]["max_position_embeddings"] == 64
    for line in ("linear cross entropy: stock", "recompute  ", "kernels    MLP: tiled"):
        assert line in found["output"]
    assert found["output"].count("changed on resume: ") == len(changes)


@pytest.mark.parametrize(
    ("schedule", "more"), [("cosine_with_min_lr", {"train.min_lr_ratio": 0.5}), ("constant", {})]
)
def test_every_type_of_schedule_applies_from_the_first_step(
    schedule: str, more: dict[str, Any], stopped: Any, words: Any, tmp_path: Path
) -> None:
    changes = {"train.lr_scheduler_type": schedule, "train.warmup_steps": 0, **more}
    found = resume(stopped, words, tmp_path / "run", changes)
    train = load(
        None, typed(changes | {"train.max_steps": 8, "train.learning_rate": 1e-2})
    ).config.train
    assert found["groups"][0]["lr"] == pytest.approx(
        learning_rate_at(train, 3, max_steps=8, warmup_steps=0)
    )
    assert f"changed on resume: lr_scheduler_type cosine -> {schedule}" in found["output"]


def test_the_derived_micro_batch_follows_this_start(
    stopped: Any, words: Any, tmp_path: Path
) -> None:
    changes = {"train.per_device_train_batch_size": "auto", "train.max_micro_batch_tokens": 64}
    found = resume(stopped, words, tmp_path / "run", changes)
    assert found["code"] == 0, found["message"]
    assert (found["per_device_train_batch_size"], found["global_batch"]) == (2, 8)
    assert "changed on resume: max_micro_batch_tokens 16384 -> 64" in found["output"]


def test_another_deepspeed_file_of_the_same_stage_applies(
    stopped: Any, words: Any, repo: Path, tmp_path: Path
) -> None:
    text = (repo / "ds_configs" / "zero2.json").read_text()
    (tmp_path / "mine.json").write_text(text)
    shutil.copytree(stopped("zero2", "adamw"), tmp_path / "run")
    found = run(
        1,
        words(tmp_path / "run", *base("adamw")),
        deepspeed=str(tmp_path / "mine.json"),
        resume="auto",
    )
    assert found["code"] == 0, found["message"]
    assert "changed on resume: deepspeed.config zero2 -> " in found["output"]


@pytest.mark.parametrize("recipe", [None, "zero2"])
def test_random_draws_continue_from_the_checkpoint(
    recipe: str | None, words: Any, tmp_path: Path
) -> None:
    """Dropout draws match after a resume: the random state is loaded after the loader is seeded."""
    whole = run(1, words(tmp_path / "whole"), train_noting_settings, deepspeed=recipe)
    first = run(1, words(tmp_path / "parts"), train_noting_settings, deepspeed=recipe, signal_at=1)
    rest = run(1, words(tmp_path / "parts"), train_noting_settings, deepspeed=recipe, resume="auto")
    assert first["code"] == 75 and rest["code"] == 0, rest["message"]
    assert {**first["draws"], **rest["draws"]} == whole["draws"] and len(
        set(whole["draws"].values())
    ) == 8
    assert "missing keys" not in rest["output"] and "There were" not in rest["output"]
