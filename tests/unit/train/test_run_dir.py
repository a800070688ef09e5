"""The run directory: one owner, no earlier run overwritten, every end recorded."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wikillm.checkpoints.retention import Keep
from wikillm.core.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    MachineError,
    StoppedError,
)
from wikillm.core.world import World
from wikillm.train.exit import ending
from wikillm.train.run_dir import RunDir, describe_environment

HOLD = """
import sys, time
from pathlib import Path
from wikillm.train.run_dir import RunDir, describe_environment
lock = RunDir(Path(sys.argv[1])).claim(resume=False)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"pid {other.pid}") as caught:
            run.claim(resume=True)
        assert f"stop it: wikillm stop {run.path}" in str(caught.value)
    finally:
        other.kill()
        other.wait()
    run.claim(resume=False).release()


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.claim(resume=False).release()
    run.metrics.write_text("{}\n")
    with pytest.raises(ConfigError, match="holds an earlier run") as caught:
        run.claim(resume=False)
    assert "--resume auto" in str(caught.value)
    (run.staging / "checkpoint-3").mkdir(parents=True)
    run.claim(resume=True).release()
    assert not run.staging.exists(), "what a killed save left is removed"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        RunDir(tmp_path / "file" / "run").claim(resume=False)


@pytest.mark.parametrize(
    ("error", "code", "meaning"),
    [
        (None, 0, "done"),
        (DivergedError("NaN"), 5, "diverged"),
        (StoppedError("SIGTERM"), 75, "stopped"),
        (CheckpointError("damaged"), 6, "checkpoint"),
        (ZeroDivisionError("oops"), 1, "bug"),
    ],
)
def test_exit_json_records_how_a_run_ended(
    tmp_path: Path, error: Exception | None, code: int, meaning: str
) -> None:
    run = RunDir(tmp_path / "run")
    expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with expected, ending(run.path, World(), 1.0) as end:
        end.lock = run.claim(resume=False)
        end.step = lambda: 7
        if error is not None:
            raise error
    found = json.loads((run.path / "exit.json").read_text())
    assert (found["code"], found["meaning"], found["step"]) == (code, meaning, 7)
    run.claim(resume=True).release()  # the lock was released


def test_a_directory_of_another_run_is_not_written_to(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    held = run.claim(resume=False)
    with pytest.raises(ConfigError), ending(run.path, World(), 1.0) as end:
        end.lock = RunDir(run.path).claim(resume=False)
    assert not (run.path / "exit.json").exists()
    held.release()


FOREIGN = {
    "photos": ["a.jpg"],
    "a project": ["train.py", ".git"],
    "a corpus": ["corpus.jsonl", "train.log"],
    "another run's parent": ["run-1", "run-2"],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_folder_with_other_files_is_refused_untouched(kind: str, tmp_path: Path) -> None:
    for name in FOREIGN[kind]:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"holds other files(.|\n)*{FOREIGN[kind][0]}") as caught:
        RunDir(tmp_path).refuse_foreign()
    assert f"run.dir={tmp_path}/run" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == set(FOREIGN[kind])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/", "holds other files(.|\n)*run.dir=/run-2"),
        ("/tmp/..", "holds other files"),
        ("corpus.jsonl", "cannot be a run directory(.|\n)*corpus.jsonl is not a folder"),
        ("corpus.jsonl/run", "cannot be a run directory(.|\n)*corpus.jsonl is not a folder"),
    ],
)
def test_the_root_folder_and_a_file_are_refused_as_run_directory(
    name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "corpus.jsonl").touch()
    with pytest.raises(ConfigError, match=message):
        RunDir(tmp_path / name).refuse_foreign()


def test_a_new_folder_an_empty_one_and_a_run_directory_are_accepted(tmp_path: Path) -> None:
    RunDir(tmp_path / "new" / "run").refuse_foreign()
    RunDir(tmp_path).refuse_foreign()
    for name in ("train.log", "slurm-7.out", ".secret", "logs", "checkpoints"):
        (tmp_path / name).touch()
    (tmp_path / "store").mkdir()
    RunDir(tmp_path).refuse_foreign(tmp_path / "store")
    with pytest.raises(ConfigError, match="store"):
        RunDir(tmp_path).refuse_foreign()
    RunDir(tmp_path).identify()
    (tmp_path / "notes.txt").touch()
    RunDir(tmp_path).refuse_foreign()


@pytest.mark.parametrize("name", ["run.json", "skips.json", "logs/rank_1.log"])
@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_a_pipe_or_a_device_in_the_place_of_a_file_is_refused(
    name: str, target: str, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / name).symlink_to(tmp_path / target)
    run = RunDir(tmp_path)
    with pytest.raises(ConfigError, match=f"{name} is neither a file nor a folder"):
        run.claim(resume=True)
    (tmp_path / name).unlink()
    run.claim(resume=True).release()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"id": "a"}', "null", "[" * 100_000])
def test_a_damaged_identity_is_named(text: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.identity.write_text(text)
    with pytest.raises(CheckpointError, match="which run this is"):
        run.identify()


def test_files_that_the_start_removes_count_as_free_space(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (run.staging / "checkpoint-3").mkdir(parents=True)
    free = shutil.disk_usage(tmp_path).free
    with open(run.staging / "checkpoint-3" / "model.safetensors", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 64 << 20)
    run.check_room(free - (1 << 20), keep=Keep(1))  # fits only with the 64 MiB of a killed save
    with pytest.raises(MachineError, match="no room for a checkpoint") as caught:
        run.check_room(free + (1 << 40), keep=Keep(1))
    assert "64 MiB more when superfluous" in str(caught.value)
    assert "run.dir=FOLDER" in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("data.tokenizer=train:8000", "data.tokenizer=train:8000"),
        ("train.max_tokens=5B", "train.max_tokens=5B"),
        ("--api_key=abc", "--api_key=***"),
        ("--hub-token=abc", "--hub-token=***"),
        ("data.path=https://user:pass@host/x", "data.path=https://***@host/x"),
        ("data.path=https://host/x.jsonl?a=1", "data.path=https://host/x.jsonl?***"),
        ("data.path=[https://host/x?sig=1,s3://b/y?versionId=2]", "data.path=[https://host/x?***"),
        ("run.name=LTAI5tAbCdEfGhIjKlMnOpQr", "run.name=***"),
    ],
)
def test_the_recorded_command_has_settings_and_no_secrets(
    typed: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", typed])
    assert describe_environment()["command"] == ["train.py", kept]
