"""A checkpoint with code in a pickle and a valid manifest: no command runs it unless allowed."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness.old_checkpoints import seal_again, train_in_the_old_format
from harness.partitions import save_partitions
from harness.programs import train_with_options
from harness.ranks import run_ranks
from harness.tiny_model import seal as complete
from harness.tiny_model import write_tokenizer
from harness.tiny_run import Words

from wikillm.checkpoints.manifest import read_manifest, verify
from wikillm.cli.main import main
from wikillm.core.errors import CheckpointError
from wikillm.models.unpickle import only_known_classes

STEPS = ("train.max_steps=4", "train.save_steps=2", "train.warmup_steps=1", "train.eval_steps=null")


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (self.path, os.O_CREAT)


def plant(file: Path, mark: Path) -> None:
    """Add an object that runs code to the contents of `file`."""
    held = torch.load(file, weights_only=False)
    torch.save(
        {**held, "more": Touch(mark)} if isinstance(held, dict) else [held, Touch(mark)], file
    )


def seal(checkpoint: Path) -> None:
    """Make the manifest fit the files again."""
    facts = {
        name: fact
        for name, fact in read_manifest(checkpoint).items()
        if name not in ("files", "format_version")
    }
    seal_again(checkpoint, facts)
    verify(checkpoint)


@pytest.fixture(scope="module", params=[2, 3])
def partitions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoint contains only DeepSpeed's partitions."""
    run = tmp_path_factory.mktemp("partitions") / "run"
    checkpoint = run / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    run_ranks(
        save_partitions, 2, str(checkpoint), request.param, True, str(run.parent / "whole.pt")
    )
    complete(checkpoint, 1)
    write_tokenizer(run / "tokenizer", ["一二三"] * 5)
    (run / "config.resolved.yaml").write_text("run: {name: x}\n")
    return run


@pytest.mark.usefixtures("warm_proofs")
@pytest.mark.parametrize("kind", ["optim_states", "model_states"])
def test_no_command_runs_a_planted_pickle(
    partitions: Path, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], corpus: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(partitions, run)
    checkpoint = run / "checkpoints" / "checkpoint-1"
    mark = tmp_path / "ran"
    for file in checkpoint.glob(f"global_step1/*{kind}.pt"):
        plant(file, mark)
    seal(checkpoint)
    store = [
        "train.max_steps=10",
        "train.warmup_steps=1",
        "data.min_val_tokens=20",
        "train.sequence_length=16",
        f"data.store={tmp_path / 'store'}",
    ]
    evaluate = [
        "eval",
        str(checkpoint),
        f"data.path={corpus}",
        f"data.tokenizer={run / 'tokenizer'}",
        *store,
    ]
    export = ["export", str(run), "--to", str(tmp_path / "model")]
    for words in (export, ["generate", str(run), "--prompt", "一"], evaluate):
        assert main(words) == 6, capsys.readouterr().err
        said = capsys.readouterr().err
        assert "holds more than numbers" in said and "open" in said and "--trust-checkpoint" in said
        assert not mark.exists(), words
    assert not (tmp_path / "model").exists()
    assert main([*export, "--trust-checkpoint"]) == 0
    assert mark.exists() and (tmp_path / "model" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def saved(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`saved(kind)`: a one-process run of an earlier version; `alone` or a recipe's name."""

    @functools.cache
    def make(kind: str) -> Path:
        run = tmp_path_factory.mktemp(kind) / "run"
        options = {} if kind == "alone" else {"deepspeed": kind}
        (result,) = run_ranks(train_in_the_old_format, 1, words(run, *STEPS), options)
        assert result["code"] == 0, result["message"]
        return run

    return make


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [("alone", "optimizer.pt"), ("alone", "rng_state*.pth"), ("alone", "scheduler.pt"),
     ("zero2", "*_optim_states.pt"), ("zero2", "*_model_states.pt")],
)  # fmt: skip
def test_no_resume_runs_a_planted_pickle(
    saved: Callable[[str], Path], words: Words, kind: str, pattern: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    mark = tmp_path / "ran"
    shutil.copytree(saved(kind), run)
    checkpoint = run / "checkpoints" / "checkpoint-2"
    shutil.rmtree(checkpoint.with_name("checkpoint-4"))
    files = list(checkpoint.rglob(pattern))
    assert files
    for file in files:
        plant(file, mark)
    seal(checkpoint)
    line = words(run, *STEPS)
    options = {} if kind == "alone" else {"deepspeed": kind}
    (result,) = run_ranks(train_with_options, 1, line, {**options, "resume": "auto"})
    assert result["code"] == 6 and "holds more than numbers" in result["message"], result["message"]
    assert not mark.exists()


@pytest.mark.parametrize(
    "held",
    [
        b"\x80\x02cposix\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x8c\x04eval\x93.",
        b"cnt\nsystem\n.",
        pickle.dumps({"a": 1}, protocol=0),
        b"no pickle at all",
        b"",
    ],
)
def test_any_content_of_a_file_is_refused_with_a_checkpoint_error(
    held: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "x.pt"
    file.write_bytes(held)
    with pytest.raises((CheckpointError, EOFError)), only_known_classes(tmp_path):
        torch.load(file, weights_only=False)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
