"""The newest checkpoint is the one written last on the current branch, whatever its step."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from wikillm.checkpoints.latest import find_complete, latest_complete
from wikillm.checkpoints.layout import MANIFEST, STATE, TRAINER_STATE, list_checkpoints
from wikillm.checkpoints.lineage import (
    Ancestry,
    arrange,
    next_ancestry,
    read_ancestry,
    record_return,
)
from wikillm.checkpoints.manifest import files_to_list, seal_files, verify, write_manifest
from wikillm.checkpoints.retention import Keep, clear_leftovers, publish, rotate
from wikillm.core.errors import CheckpointError


class Run:
    """A run that saves and goes back, without a model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin: Ancestry | None = None

    def save(self, step: int, keep: int = 100) -> Path:
        staged = self.folder / ".staging" / f"checkpoint-{step}"
        staged.mkdir(parents=True)
        (staged / "model.safetensors").write_bytes(os.urandom(64))
        (staged / STATE).write_text(json.dumps({"step": step}))
        (staged / TRAINER_STATE).write_text(json.dumps({"global_step": step}))
        self.origin = next_ancestry(self.folder, step, self.origin)
        write_manifest(
            staged,
            seal_files(staged, files_to_list(staged)),
            {"step": step, **self.origin.to_json()},
        )
        final = self.folder / staged.name
        publish(staged, final)
        rotate(self.folder, Keep(keep))
        return final

    def go_back(self, step: int) -> None:
        self.origin = read_ancestry(self.folder / f"checkpoint-{step}")


def names(paths: tuple[Path, ...] | list[Path]) -> list[int]:
    return [int(path.name.removeprefix("checkpoint-")) for path in paths]


def damage(checkpoint: Path) -> None:
    os.truncate(checkpoint / "model.safetensors", 1)


@pytest.fixture
def rolled_back(tmp_path: Path) -> Run:
    """Saved at 2, 4, 6, 8, then from 4 again at 6."""
    run = Run(tmp_path)
    for step in (2, 4, 6, 8):
        run.save(step)
    run.go_back(4)
    run.save(6)
    return run


def test_the_branch_written_last_is_used_and_the_other_is_named(
    rolled_back: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    lineage = arrange(rolled_back.folder)
    assert (names(lineage.branch), names(lineage.abandoned)) == ([6, 4, 2], [8])
    found = latest_complete(rolled_back.folder)
    assert found is not None and found.name == "checkpoint-6"
    assert "skipping checkpoint-8: it is abandoned" in capsys.readouterr().err
    assert find_complete(rolled_back.folder, quiet=True).name == "checkpoint-6"
    assert capsys.readouterr().err == ""
    assert find_complete(rolled_back.folder).name == "checkpoint-6"
    assert find_complete(rolled_back.folder / "checkpoint-8").name == "checkpoint-8"  # by name


@pytest.mark.parametrize("ruin", [damage, lambda c: (c / MANIFEST).unlink(), shutil.rmtree])
def test_a_damaged_newest_checkpoint_falls_back_to_its_ancestors(
    rolled_back: Run, ruin: object
) -> None:
    """From 7 to 6 to 4, never to the abandoned 8, whose sequence is higher than that of 4."""
    rolled_back.save(7)
    ruin(rolled_back.folder / "checkpoint-6")  # type: ignore[operator]
    damage(rolled_back.folder / "checkpoint-7")
    found = latest_complete(rolled_back.folder)
    assert found is not None and found.name == "checkpoint-4"


@pytest.mark.parametrize("ruin", [damage, lambda c: (c / MANIFEST).unlink(), shutil.rmtree])
def test_the_branch_is_known_without_its_newest_checkpoint(rolled_back: Run, ruin: object) -> None:
    """The only checkpoint since the run went back is lost: from 4, not from the abandoned 8."""
    ruin(rolled_back.folder / "checkpoint-6")  # type: ignore[operator]
    found = latest_complete(rolled_back.folder)
    assert found is not None and found.name == "checkpoint-4"
    assert names(arrange(rolled_back.folder).abandoned) == [8]
    rolled_back.go_back(4)
    saved = rolled_back.save(5)
    assert latest_complete(rolled_back.folder) == saved


def test_a_run_that_went_back_is_known_before_it_saves(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (2, 4, 6, 8):
        run.save(step)
    record_return(tmp_path, read_ancestry(tmp_path / "checkpoint-8"))
    assert names(arrange(tmp_path).branch) == [8, 6, 4, 2], "this is the newest one"
    record_return(tmp_path, read_ancestry(tmp_path / "checkpoint-4"))
    lineage = arrange(tmp_path)
    assert (names(lineage.branch), names(lineage.abandoned)) == ([4, 2], [8, 6])
    record_return(tmp_path, read_ancestry(tmp_path / "checkpoint-8"))
    assert names(arrange(tmp_path).branch) == [8, 6, 4, 2], "back on the first branch"
    record_return(tmp_path, read_ancestry(tmp_path / "checkpoint-4"))
    (tmp_path / "checkpoint-4" / MANIFEST).unlink()
    assert names(arrange(tmp_path).branch) == [4, 2]
    run.go_back(2)
    run.save(5)
    assert names(rotate(tmp_path, Keep(1))) == [2, 8, 6]


@pytest.mark.parametrize("text", [None, "{", '{"sequence": "x", "step": 6, "ancestors": []}', "[]"])
def test_a_lost_or_foreign_newest_json_is_ignored(rolled_back: Run, text: str | None) -> None:
    record = rolled_back.folder / ".newest.json"
    record.unlink() if text is None else record.write_text(text)
    assert names(arrange(rolled_back.folder).branch) == [6, 4, 2]
    # A checkpoint from a backup, after all those of the recorded branch were deleted, is used.
    rolled_back.save(7)
    for step in (2, 4, 6, 7):
        shutil.rmtree(rolled_back.folder / f"checkpoint-{step}")
    assert names(arrange(rolled_back.folder).branch) == [8]


def test_without_an_intact_checkpoint_on_the_branch_an_abandoned_one_is_offered(
    rolled_back: Run,
) -> None:
    for step in (2, 4, 6):
        damage(rolled_back.folder / f"checkpoint-{step}")
    with pytest.raises(CheckpointError, match="current branch") as caught:
        latest_complete(rolled_back.folder)
    assert "abandoned checkpoint: checkpoint-8" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("keep", "stay"), [(1, [6]), (2, [6, 4]), (3, [6, 4, 2]), (4, [8, 6, 4, 2])]
)
def test_rotation_removes_abandoned_checkpoints_first(
    rolled_back: Run, keep: int, stay: list[int]
) -> None:
    rolled_back.go_back(4)
    assert rolled_back.save(6, keep).is_dir()
    assert names(list_checkpoints(rolled_back.folder)) == stay


def test_rotation_keeps_the_last_intact_checkpoint_even_on_an_abandoned_branch(
    rolled_back: Run,
) -> None:
    for step in (2, 4, 6):
        damage(rolled_back.folder / f"checkpoint-{step}")
    rotate(rolled_back.folder, Keep(1))
    verify(rolled_back.folder / "checkpoint-8")


def test_checkpoints_of_earlier_versions_are_one_branch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (2, 4, 6, 8):
        manifest = run.save(step) / MANIFEST
        recorded = json.loads(manifest.read_text())
        del recorded["sequence"], recorded["ancestors"]
        manifest.write_text(json.dumps(recorded))
    assert names(arrange(tmp_path).branch) == [8, 6, 4, 2]
    run.go_back(4)
    run.save(5)
    lineage = arrange(tmp_path)
    assert (names(lineage.branch), names(lineage.abandoned)) == ([5, 4, 2], [8, 6])
    damage(tmp_path / "checkpoint-5")
    found = latest_complete(tmp_path)
    assert found is not None and found.name == "checkpoint-4"


@pytest.mark.parametrize("seed", range(5))
def test_any_history_resumes_on_the_branch_written_last(tmp_path: Path, seed: int) -> None:
    """The newest good checkpoint of that branch is found; a plain list is the reference."""
    random_number = random.Random(seed)
    run = Run(tmp_path)
    line: list[int] = []  # steps of the current branch, oldest first
    lines: dict[int, list[int]] = {}  # the branch of each checkpoint that exists
    for _ in range(16):
        if lines and random_number.random() < 0.3:
            step = random_number.choice(sorted(lines))
            line = [*lines[step]]
            run.go_back(step)
        step = (line[-1] if line else 0) + random_number.randint(1, 3)
        run.save(step, keep=4)
        line = [*line, step]
        lines[step] = line
        standing = set(names(list_checkpoints(tmp_path)))
        lines = {s: path for s, path in lines.items() if s in standing}
        assert step in standing and len(standing) <= 4
        assert names(arrange(tmp_path).branch)[0] == step
    on_branch = names(arrange(tmp_path).branch)
    for step in on_branch[:-1]:
        damage(tmp_path / f"checkpoint-{step}")
    found = latest_complete(tmp_path)
    assert found is not None and found.name == f"checkpoint-{on_branch[-1]}"
    assert on_branch[-1] in line


def test_a_crash_while_a_checkpoint_is_replaced_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    run = Run(tmp_path)
    checkpoint = run.save(6)
    os.replace(checkpoint, tmp_path / ".replaced-checkpoint-6")  # between the two renames
    clear_leftovers(tmp_path)
    verify(checkpoint)
    shutil.copytree(checkpoint, tmp_path / ".replaced-checkpoint-6")  # after both
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".newest.json", "checkpoint-6"]


@pytest.mark.parametrize(
    "planted",
    [
        {"sequence": "9"},
        {"sequence": True},
        {"sequence": 9},
        {"sequence": 9, "ancestors": [3]},
        {"sequence": -1},
    ],
)
def test_a_manifest_with_a_wrong_lineage_is_skipped(
    tmp_path: Path, planted: dict[str, object]
) -> None:
    run = Run(tmp_path)
    run.save(2)
    manifest = run.save(4) / MANIFEST
    known = json.loads(manifest.read_text())
    known.pop("ancestors")
    manifest.write_text(json.dumps({**known, **planted}))
    with pytest.raises(CheckpointError, match="manifest"):
        read_ancestry(manifest.parent)
    found = latest_complete(tmp_path)
    assert found is not None and found.name == "checkpoint-2"


def test_the_name_of_a_folder_and_the_steps_in_it_must_agree(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(4)
    renamed = run.save(8).rename(tmp_path / "checkpoint-80")
    with pytest.raises(CheckpointError, match="step 8, and the folder is checkpoint-80"):
        verify(renamed)
    found = latest_complete(tmp_path)
    assert found is not None and found.name == "checkpoint-4"
    (tmp_path / "checkpoint-4" / TRAINER_STATE).write_text(json.dumps({"global_step": 5}))
    files = seal_files(tmp_path / "checkpoint-4", files_to_list(tmp_path / "checkpoint-4"))
    write_manifest(tmp_path / "checkpoint-4", files, {"step": 4})
    with pytest.raises(CheckpointError, match=f"{TRAINER_STATE}: step 5"):
        verify(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("name", ["checkpoint-9", "checkpoint-1", "checkpoint-04"])
def test_a_copy_under_another_step_is_neither_taken_nor_removed(name: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    shutil.copytree(run.save(4), tmp_path / name)
    for step in (6, 8):
        run.save(step, keep=1)
    assert {path.name for path in list_checkpoints(tmp_path)} == {"checkpoint-8", name}
    found = latest_complete(tmp_path)
    assert found is not None and found.name == "checkpoint-8"
