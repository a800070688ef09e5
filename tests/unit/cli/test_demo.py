"""The demo's choices: the source, the run directory, and a batch that any number of GPUs can
share."""

from __future__ import annotations

from pathlib import Path

import pytest

from wikillm.cli.demo import (
    FIRST_CHOICES,
    PACKAGED_DUMP,
    SEQUENCES,
    find_source,
    free_run_dir,
    quoted,
    share_out,
)
from wikillm.config.load import load
from wikillm.plan.run_plan import make_plan


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 7, 8, 16])
def test_every_number_of_gpus_trains_the_same_batch(gpus: int) -> None:
    count, micro_batch = share_out(gpus)
    assert count <= gpus
    resolved = load(
        "demo", ["data.path=x.jsonl", f"train.per_device_train_batch_size={micro_batch}"]
    )
    plan = make_plan(resolved, world_size=count, tokenizer_length=4000, train_tokens=700_000)
    assert plan.global_batch_sequences == SEQUENCES


def test_a_users_file_then_chinese_wikipedia_then_the_packaged_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_source(None).name == PACKAGED_DUMP
    for pattern in reversed(FIRST_CHOICES):
        path = tmp_path / pattern.replace("*", "20240820")
        path.parent.mkdir(exist_ok=True)
        path.write_text("[]")
        assert find_source(None).resolve() == path
    assert find_source("mine.jsonl") == Path("mine.jsonl")


def test_every_demo_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    for name in ("demo", "demo-2", "demo-3"):
        assert free_run_dir(tmp_path / "demo").name == name
        (tmp_path / name).mkdir()


@pytest.mark.parametrize("name", ["a b.json", "文件,1.json", 'x"y.json', "[z].json", "-dash.json"])
def test_any_name_stays_one_path(name: str) -> None:
    assert load("demo", [f"data.path=[{quoted(Path(name))}]"]).config.data.path == (name,)
