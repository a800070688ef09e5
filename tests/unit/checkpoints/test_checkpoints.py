"""A checkpoint is complete or absent; the newest good one is found and is never removed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from wikillm.checkpoints.latest import find_complete, latest_complete
from wikillm.checkpoints.layout import MANIFEST, STAGING, STATE, list_checkpoints
from wikillm.checkpoints.manifest import (
    damage,
    files_to_list,
    read_state,
    seal_files,
    verify,
    write_manifest,
)
from wikillm.checkpoints.retention import (
    Keep,
    bytes_freed_at_start,
    clear_leftovers,
    make_room,
    rotate,
    superfluous,
)
from wikillm.core.errors import CheckpointError, MachineError
from wikillm.core.faults import as_refusal
from wikillm.core.files import files_below


def make(folder: Path, step: int, content: bytes = b"weights" * 1000, **more: object) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "global_step").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(content + str(step).encode())
    (checkpoint / "global_step" / "optimizer.pt").write_bytes(content * 2)
    (checkpoint / STATE).write_text(
        json.dumps({"step": step, "consumed_samples": step * 8, **more})
    )
    entries = seal_files(checkpoint, files_to_list(checkpoint))
    write_manifest(checkpoint, entries, {"step": step, "world_size": 1})
    return checkpoint


def steps(checkpoints: Iterable[Path]) -> list[int]:
    return [int(path.name.removeprefix("checkpoint-")) for path in checkpoints]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped bit": (lambda c: flip_a_bit(c / "global_step" / "optimizer.pt"), "content changed"),
    "truncated": (lambda c: os.truncate(c / "model.safetensors", 100), "100 bytes instead of"),
    "zeroed": (lambda c: (c / "model.safetensors").write_bytes(bytes(7002)), "content changed"),
    "deleted": (lambda c: (c / STATE).unlink(), "missing"),
    "added": (lambda c: (c / "global_step" / "evil.pt").write_bytes(b"x"), "not in the manifest"),
    "no manifest": (lambda c: (c / MANIFEST).unlink(), "not a complete checkpoint"),
    "torn manifest": (lambda c: os.truncate(c / MANIFEST, 50), "cannot be read"),
    "other format": (
        lambda c: (c / MANIFEST).write_text('{"format_version": 99, "files": {}}'),
        "not of format 1",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_the_checkpoint_before_is_used(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make(tmp_path, 10)
    newest = make(tmp_path, 20)
    damage, message = DAMAGE[kind]
    damage(newest)
    with pytest.raises(CheckpointError, match=message):
        verify(newest)
    assert latest_complete(tmp_path) == good
    assert "skipping checkpoint-20" in capsys.readouterr().err
    assert newest.exists(), "a damaged checkpoint stays for inspection"


def test_a_manifest_cannot_name_files_outside(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 10)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"]["../../secret"] = {"size": 1, "sha256": "0" * 64}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        verify(checkpoint)


def test_if_all_checkpoints_are_damaged_all_reasons_are_given_and_none_is_deleted(
    tmp_path: Path,
) -> None:
    for step in (10, 20):
        os.truncate(make(tmp_path, step) / "model.safetensors", 1)
    with pytest.raises(CheckpointError) as caught:
        latest_complete(tmp_path)
    assert "checkpoint-10" in str(caught.value) and "checkpoint-20" in str(caught.value)
    assert caught.value.exit_code == 6
    assert len(list_checkpoints(tmp_path)) == 2


def test_find_complete_takes_a_run_a_folder_or_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "run" / "checkpoints", 10)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints", checkpoint):
        assert find_complete(path) == checkpoint
    with pytest.raises(CheckpointError, match="no complete checkpoint") as caught:
        find_complete(tmp_path / "elsewhere")
    assert "name a run directory" in str(caught.value)
    (tmp_path / "new run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no complete checkpoint") as caught:
        find_complete(tmp_path / "new run")
    assert f"touch '{tmp_path / 'new run' / 'save'}'" in str(caught.value)
    with pytest.raises(CheckpointError, match="no checkpoint at") as caught:
        find_complete(checkpoint.with_name("checkpoint-999"))
    assert checkpoint.name in str(caught.value)


def test_rotation_keeps_the_newest_and_does_not_count_damaged_checkpoints(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        make(tmp_path, step)
    os.truncate(tmp_path / "checkpoint-40" / "model.safetensors", 1)
    assert steps(rotate(tmp_path, Keep(2))) == [10]
    assert steps(list_checkpoints(tmp_path)) == [40, 30, 20]
    (tmp_path / STAGING / "checkpoint-50").mkdir(parents=True)
    (tmp_path / ".deleting-checkpoint-5").mkdir()
    clear_leftovers(tmp_path)
    assert sorted(steps(tmp_path.iterdir())) == [20, 30, 40]


SAVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from wikillm.checkpoints.manifest import files_to_list, seal_files, write_manifest
from wikillm.checkpoints.retention import Keep, rotate
from wikillm.core.files import rename_durably
folder, step = Path({folder!r}), {first}
while True:
    step += 1
    staged = folder / ".staging" / f"checkpoint-{{step}}"
    staged.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c"):
        (staged / name).write_bytes(str(step).encode() * 20000)
    write_manifest(staged, seal_files(staged, files_to_list(staged)), {{"step": step}})
    rename_durably(staged, folder / staged.name)
    rotate(folder, Keep(2))
    print(step, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.011, 0.05])
def test_sigkill_at_any_moment_leaves_only_good_checkpoints(tmp_path: Path, delay: float) -> None:
    """A process that saves and rotates is killed: what is listed verifies, up to the last step."""
    first = 0
    for _ in range(3):
        program = SAVER.format(folder=str(tmp_path), first=first, tests=str(Path(__file__).parent))
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(3):
            said = int(process.stdout.readline())
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        said = int(rest[-1]) if rest else said
        clear_leftovers(tmp_path)
        for checkpoint in list_checkpoints(tmp_path):
            verify(checkpoint)
        newest = latest_complete(tmp_path)
        assert newest is not None
        first = int(newest.name.removeprefix("checkpoint-"))
        assert first in (said, said + 1)


def test_every_file_is_hashed_by_one_of_the_ranks(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 1)
    manifest = verify(checkpoint)
    for name in manifest["files"]:
        flip_a_bit(checkpoint / name)
    for ranks in (1, 2, 3, 5):
        shares = [damage(checkpoint, manifest, rank=rank, ranks=ranks) for rank in range(ranks)]
        found = sorted(line.partition(":")[0] for share in shares for line in share)
        assert found == sorted(manifest["files"])


def test_too_many_open_files_damage_no_checkpoint(tmp_path: Path) -> None:
    """Otherwise a resume would fall back to an older checkpoint, or find none."""
    checkpoint = make(tmp_path, 1)
    manifest = verify(checkpoint)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(checkpoint, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        for check in (
            lambda: verify(checkpoint),
            lambda: damage(checkpoint, manifest, rank=1, ranks=2),
        ):
            with pytest.raises(OSError, match="Too many open files") as caught:
                check()
            assert isinstance(as_refusal(caught.value), MachineError)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert latest_complete(tmp_path) == checkpoint


def test_bytes_freed_at_start_are_leftovers_and_superfluous_checkpoints(tmp_path: Path) -> None:
    assert bytes_freed_at_start(tmp_path / "none", Keep(1)) == 0
    sizes = [
        sum(path.stat().st_size for path in files_below(make(tmp_path, step))) for step in (1, 2, 3)
    ]
    assert bytes_freed_at_start(tmp_path, Keep(4)) == 0
    (tmp_path / STAGING / "checkpoint-4").mkdir(parents=True)
    (tmp_path / STAGING / "checkpoint-4" / "model.safetensors").write_bytes(bytes(12345))
    assert bytes_freed_at_start(tmp_path, Keep(3)) == 12345 + sizes[0], "as before each save"
    assert bytes_freed_at_start(tmp_path, Keep(1)) == 12345 + sizes[0] + sizes[1]


@pytest.mark.parametrize("wrong", [None, -1, 10**30, "7", True])
def test_a_state_without_counts_is_damaged(wrong: object, tmp_path: Path) -> None:
    (tmp_path / STATE).write_text(json.dumps({"step": 3, "consumed_samples": wrong}))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_state(tmp_path)


def rated(folder: Path, losses: dict[int, float | None]) -> None:
    """Checkpoints with a held-out loss of their own step; None: only one of an earlier step."""
    for step, loss in losses.items():
        found = {"held_out": {"loss": loss or 0.1}, "held_out_step": step if loss else step - 1}
        make(folder, step, **found)


def test_rotation_keeps_every_nth_step_and_the_best_beside_the_newest(tmp_path: Path) -> None:
    losses = {1: 9.0, 2: 3.0, 3: None, 4: 7.0, 5: 2.5, 6: 3.0, 7: float("nan"), 8: 8.0, 9: 9.0}
    rated(tmp_path, losses)
    keep = Keep(newest=2, every=4, best=2)
    assert steps(superfluous(tmp_path, keep)) == [7, 3, 2, 1], "of equal losses the later stays"
    assert steps(rotate(tmp_path, keep)) == [7, 3, 2, 1]
    assert steps(list_checkpoints(tmp_path)) == [9, 8, 6, 5, 4]
    # A damaged checkpoint is not the best; the next one takes its place.
    os.truncate(tmp_path / "checkpoint-5" / "model.safetensors", 1)
    assert steps(superfluous(tmp_path, Keep(newest=1, best=1))) == [8, 5, 4]


def test_room_is_made_by_the_next_rotation_and_never_by_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    rated(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0})
    too_large = 1 << 60
    assert make_room(tmp_path, 1, Keep(3)) == ([], 0), "it fits"
    removed, missing = make_room(tmp_path, too_large, Keep(3))
    assert steps(removed) == [1] and missing > 1 << 50
    removed, _ = make_room(tmp_path, too_large, Keep(1))
    assert steps(removed) == [2] and steps(list_checkpoints(tmp_path)) == [3]
    assert make_room(tmp_path, too_large, Keep(1))[0] == [] and latest_complete(tmp_path)
