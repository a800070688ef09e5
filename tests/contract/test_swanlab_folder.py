"""The checkout is a SwanLab Launch folder: all code is packed, and trains elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from harness.tiny_run import TINY

from wikillm.checkpoints.latest import latest_complete
from wikillm.config.keys import nested
from wikillm.launch.swanlab_manifest import TEMPLATE, read_manifest
from wikillm.launch.swanlab_pack import plan_packing, write_zip


@pytest.fixture(scope="module")
def unpacked(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    manifest = read_manifest(repo / "swanlab.yaml")
    write_zip(manifest, plan_packing(manifest), folder / "job.zip")
    zipfile.ZipFile(folder / "job.zip").extractall(folder / "code")
    return folder / "code"


def test_requirements_are_the_dependencies(repo: Path) -> None:
    lines = (repo / "requirements.txt").read_text(encoding="utf-8").splitlines()
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [line for line in lines if line and not line.startswith("#")] == project["dependencies"]


def test_the_manifest_is_what_init_writes(repo: Path) -> None:
    assert (repo / "swanlab.yaml").read_text(encoding="utf-8") == TEMPLATE


def test_all_code_is_packed_and_no_pattern_hits_it(repo: Path, unpacked: Path) -> None:
    folders = ("wikillm", "ds_configs", "train.py", "requirements.txt", "swanlab.yaml")
    done = subprocess.run(
        ["git", "ls-files", *folders], cwd=repo, capture_output=True, text=True, check=True
    )
    listed = done.stdout.splitlines()
    there = [name for name in listed if (repo / name).is_file()]
    assert len(there) > 100
    missing = [name for name in there if not (unpacked / name).is_file()]
    assert not missing
    assert not (unpacked / "tests").exists() and not (unpacked / "docs").exists()


def test_the_unpacked_job_trains_as_the_service_starts_it(
    unpacked: Path, corpus: Path, tmp_path: Path
) -> None:
    """Plain `python train.py`, with a tiny default run; the data is where a job has it."""
    job = tmp_path / "job"
    shutil.copytree(unpacked, job)
    volume = job / "data"
    volume.mkdir(exist_ok=True)
    shutil.copy(corpus, volume / "wikipedia-zh-cn-20990101.json")
    words = [*TINY, "train.max_steps=2", "train.eval_steps=2", "train.save_steps=2"]
    words += ["train.learning_rate=0.01", "data.preset=wiki-zh"]
    values = dict(word.split("=", 1) for word in words)
    sections = nested({key: yaml.safe_load(value) for key, value in values.items()})
    preset = job / "wikillm" / "presets" / "runs" / "wiki-zh-120m.yaml"
    assert preset.is_file()
    preset.write_text(yaml.safe_dump(sections), encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=job,
        env={**environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (exit_file,) = (job / "runs").glob("*/exit.json")
    assert json.loads(exit_file.read_text())["code"] == 0
    assert latest_complete(exit_file.parent / "checkpoints") is not None
