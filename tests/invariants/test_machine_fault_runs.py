"""Runs on faulty machines: full disk, read-only HOME, damaged state, busy port, odd variables."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.programs import train_on_small_disk, train_with_options, train_with_read_only_home
from harness.ranks import run_ranks
from harness.reference import References
from harness.tiny_run import run

from wikillm.checkpoints.layout import STATE
from wikillm.checkpoints.manifest import (
    files_to_list,
    read_manifest,
    seal_files,
    tensor_entry,
    write_manifest,
)


def can_mount() -> bool:
    return (
        os.geteuid() == 0
        and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


needs_mounts = pytest.mark.skipif(not can_mount(), reason="needs root and mount namespaces")


@needs_mounts
def test_a_disk_that_fills_up(words: Any, tmp_path: Path) -> None:
    """During a save: exit code 3 names the newest checkpoint, and nothing staged is left.

    Before a save: the checkpoint is left out, and only the last one ends the run. A lower limit
    frees space.
    """
    common = ("train.save_steps=1", "train.max_steps=6", "train.eval_steps=6")
    disk = tmp_path / "disk"
    disk.mkdir()
    saved = f"the newest complete checkpoint is {disk}/run/checkpoints"
    first = words(disk / "run", *common, "train.save_total_limit=50")
    again = words(disk / "run", *common, "train.save_total_limit=1")
    starts = (first, first, first, again)
    ((full, left_out, refused, gone_on),) = run_ranks(
        train_on_small_disk, 1, str(disk), "1700k", *starts
    )
    assert full["code"] == 3 and full["exit"]["code"] == 3, full["message"]
    assert "there is no room left on the disk" in full["message"]
    assert f"{saved}/checkpoint-2" in full["message"] and not full["staging"]
    assert full["checkpoints"] == ["checkpoint-2", "checkpoint-1"]

    assert left_out["code"] == 3 and "room for the checkpoint of step 6." in left_out["message"]
    newest = left_out["checkpoints"][0]
    assert f"{saved}/{newest}" in left_out["message"] and not left_out["staging"]
    assert "There is no room for the checkpoint of step 5. It is left out" in left_out["output"]
    assert 5 in left_out["losses"], "training went on"

    assert refused["code"] == 3 and "There is no room for a checkpoint" in refused["message"]
    assert "train.save_total_limit=2" in refused["message"]
    assert refused["checkpoints"] == left_out["checkpoints"]
    assert gone_on["code"] == 0, gone_on["message"]
    assert gone_on["checkpoints"] == ["checkpoint-6"]
    removed = f"removed {disk}/run/checkpoints/checkpoint-1: train.save_total_limit=1"
    assert removed in gone_on["output"]


@needs_mounts
def test_a_run_with_deepspeed_trains_with_a_read_only_home(words: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    options = {"deepspeed": "zero1"}
    (found,) = run_ranks(train_with_read_only_home, 1, words(tmp_path / "run"), options, str(home))
    assert found["code"] == 0, found["message"]


@pytest.fixture(scope="module")
def trained(references: References, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps without DeepSpeed. Only its middle checkpoint is left."""
    folder: Path = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(references(1)["folder"], folder)
    shutil.rmtree(folder / "checkpoints" / "checkpoint-8")
    return folder


def forget(file: Path, key: str) -> None:
    """Remove a key from a JSON file."""
    held = json.loads(file.read_text())
    del held[key]
    file.write_text(json.dumps(held))


DAMAGE = {
    "model.safetensors cut off": lambda c: os.truncate(c / "model.safetensors", 3000),
    "optimizer/exp_avg.safetensors missing": lambda c: (
        c / "optimizer" / "exp_avg.safetensors"
    ).unlink(),
    "rank_00000.json empty": lambda c: (c / "ranks" / "rank_00000.json").write_bytes(b""),
    "rank_00000.json without a random state": lambda c: forget(
        c / "ranks" / "rank_00000.json", "random"
    ),
    "wikillm_state.json without step counts": lambda c: forget(c / STATE, "engine"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_training_state_that_does_not_load_is_a_checkpoint_error(
    kind: str, trained: Path, words: Any, tmp_path: Path
) -> None:
    """Also if the manifest matches the damage. The run does not silently start from scratch."""
    shutil.copytree(trained, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    DAMAGE[kind](checkpoint)
    manifest = read_manifest(checkpoint)
    facts = {
        name: value for name, value in manifest.items() if name not in ("files", "format_version")
    }
    entries = seal_files(checkpoint, files_to_list(checkpoint))
    for name, entry in manifest["files"].items():
        if "digests" in entry and name in entries:
            entries[name] = tensor_entry(entries[name]["size"])
    write_manifest(checkpoint, entries, facts)
    found = run(1, words(tmp_path / "run"), resume="auto")
    assert found["code"] == 6 and found["exit"]["code"] == 6, found["message"]
    assert "checkpoint-4" in found["message"] and (
        "missing" not in kind or kind.split()[0] in found["message"]
    )


def test_nan_before_the_first_checkpoint_suggests_a_new_run(words: Any, tmp_path: Path) -> None:
    found = run(1, words(tmp_path / "run"), poison_at=1)
    assert found["code"] == 5 and "--resume" not in found["message"], found["message"]
    assert f"train.learning_rate=0.005 run.dir={tmp_path}/run-2" in found["message"]
    after = run(1, words(tmp_path / "run-2"), poison_at=5)
    assert after["code"] == 5 and "--resume auto train.learning_rate=0.005" in after["message"]


def test_a_port_in_use_is_a_machine_error(words: Any, tmp_path: Path) -> None:
    from wikillm.core.faults import as_refusal

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(AssertionError, match="EADDRINUSE") as caught:
            run_ranks(
                train_with_options,
                1,
                words(tmp_path / "run"),
                {"deepspeed": "zero1"},
                MASTER_PORT=port,
            )
    refusal = as_refusal(RuntimeError(str(caught.value)))
    assert refusal is not None and "--master_port" in str(refusal)
    assert '"code": 3' in (tmp_path / "run" / "exit.json").read_text()


def test_a_variable_of_accelerate_changes_nothing(
    words: Any, trained: Path, tmp_path: Path
) -> None:
    command = words(tmp_path / "run")
    odd = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_MODE": "default",
        "FSDP_VERSION": "2",
    }
    (found,) = run_ranks(train_with_options, 1, command, {}, **odd)
    assert found["code"] == 0, found["message"]
    (wished,) = run_ranks(train_with_options, 1, command, {}, ACCELERATE_MIXED_PRECISION="bf16")
    assert wished["code"] == 2 and "train.precision=bf16" in wished["message"]
    from wikillm.observe.sinks import read_metrics

    assert found["losses"] == {
        r["step"]: r["loss"] for r in read_metrics(trained / "metrics.jsonl")
    }
