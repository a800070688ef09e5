"""A mistake in a DeepSpeed JSON is the same refusal in `plan`, `doctor`, `launch --print` and
`train`, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wikillm.cli.main import main

PLAIN: dict[str, Any] = {
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2},
}
# name -> (changes to a sound file, what the message says); the run has 2 ranks, 4 sequences each,
# 1024 tokens a step
MISTAKES: dict[str, tuple[dict[str, Any] | str, str]] = {
    "unknown key": ({"zero_optimisation": {"stage": 2}}, "zero_optimization"),
    "stage": ({"zero_optimization": {"stage": 5}}, "must be 0, 1, 2 or 3"),
    "no precision block": ({"bf16": None}, 'The block "bf16"'),
    "kind of a value": ({"gradient_clipping": "one"}, "gradient_clipping must be a number"),
    "size": (
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1e30}},
        "reduce_bucket_size must be a whole number",
    ),
    "sum of gradients": ({"gradient_allreduce_op": "sum"}, "must be one of mean"),
    "optimizer": (
        {"optimizer": {"type": "AdamW", "params": {"lr": "auto", "beta": [0.9, 0.95]}}},
        'did you mean "betas"',
    ),
    "autocast": ({"torch_autocast": {"enabled": True, "dtype": "int8"}}, "must be one of bfloat16"),
    "checkpoints": ({"datastates_ckpt": {"host_cache_size": 1}}, "checkpoints itself"),
    "scaled gradients": ({"prescale_gradients": True}, "is not supported"),
    "no norm": (
        {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
        "compute_grad_norm=false needs a run without clipping",
    ),
    "clipping": ({"gradient_clipping": 0.3}, "train.max_grad_norm"),
    "batch": ({"train_batch_size": 1000}, "train.global_batch_tokens"),
    "wandb": ({"wandb": {"enabled": True, "project": "p"}}, "observe.swanlab.mode=online"),
    "not JSON": ("{'bf16': 1}", "not valid"),
    "not there": ("", "No DeepSpeed JSON at"),
}
RUN = ["--config", "demo", "data.path=nowhere.jsonl"]
COMMANDS = {
    "plan": ["plan", "--gpus", "2"],
    "doctor": ["doctor", "--gpus", "2"],
    "launch": ["launch", "multi", "--gpus", "2", "--print"],
    "train": ["train"],
    "dry run": ["train", "--dry-run"],
}


def write(file: Path, changes: dict[str, Any] | str) -> None:
    if isinstance(changes, str):
        file.write_text(changes)
        if not changes:
            file.unlink()
        return
    file.write_text(
        json.dumps({key: value for key, value in (PLAIN | changes).items() if value is not None})
    )


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher sets, for the commands that read it."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_every_command(
    mistake: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes, said = MISTAKES[mistake]
    write(tmp_path / "ds.json", changes)
    monkeypatch.chdir(tmp_path)
    assert main([*COMMANDS[command], *RUN, "--deepspeed", "ds.json"]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and "ds.json" in shown.err
    assert [line for line in shown.out.splitlines() if "importing" not in line] == []
    assert sorted(path.name for path in tmp_path.iterdir()) in (["ds.json"], []), (
        "nothing was started or written"
    )


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("command", ["plan", "doctor", "launch"])
def test_a_setting_that_a_recipe_excludes_is_refused_alike(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = "train.compile=layers"
    assert main([*COMMANDS[command], *RUN, setting, "--deepspeed", "zero3"]) == 2
    assert setting in capsys.readouterr().err


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "doctor"])
def test_a_batch_that_does_not_divide_is_refused_before_the_data_are_read(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*COMMANDS[command], *RUN, "train.global_batch_tokens=384"]) == 2
    assert "cannot be split over 2 ranks" in capsys.readouterr().err and not list(
        tmp_path.iterdir()
    )


def test_what_is_not_known_yet_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "ds.json", {"bf16": {"enabled": True}, "train_batch_size": 8})
    words = ["launch", "multi", "--print", *RUN, "--deepspeed", str(tmp_path / "ds.json")]
    assert main(words) == 0, capsys.readouterr().err


def test_a_file_of_another_machine_is_left_to_that_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--deepspeed", "/somewhere/else/ds.json", *RUN]
    assert main(["launch", "k8s", "--image", "i:1", "--gpus", "2", "--print", *words]) == 0
    assert "checked when the run starts" in capsys.readouterr().err
    assert main(["launch", "multi", "--gpus", "2", "--print", *words]) == 2
