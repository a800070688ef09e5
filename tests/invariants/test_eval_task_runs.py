"""Tasks that are scored while training change no step, on any engine, nor across a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.programs import tensor_digest
from harness.questions import write_questions
from harness.reference import References
from harness.tiny_run import run

from wikillm.evals.results import read_results
from wikillm.observe.sinks import read_records


def test_tasks_do_not_change_the_run(words: Any, references: References, tmp_path: Path) -> None:
    """Two ranks with ZeRO-3, stopped and resumed, and one rank: the same steps and scores."""
    ceval, _, own = write_questions(tmp_path / "tasks")
    more = [f"train.eval_tasks={ceval},{own}", "train.eval_tasks_steps=4"]
    found = {}
    for world, recipe in ((2, "zero3"), (1, "zero1")):
        reference = references(world, deepspeed=recipe)
        folder = tmp_path / recipe
        if world == 2:
            stopped = run(2, words(folder, *more), deepspeed=recipe, signal_at=5)
            assert stopped["code"] == 75, stopped["message"]
        result = run(world, words(folder, *more), deepspeed=recipe, resume="auto")
        assert result["code"] == 0, result["message"]
        assert result["losses"] == reference["losses"]
        whole, parts = reference["folder"], folder
        digests = {tensor_digest(one / "checkpoints" / "checkpoint-8") for one in (whole, parts)}
        assert len(digests) == 1
        found[world] = read_results(folder)
    records = [found[1], found[2]]
    assert [[one["model"]["step"] for one in each] for each in records] == [[4, 8], [4, 8]]
    for one, two in zip(*records, strict=True):
        assert [task["overall"]["questions"] for task in one["tasks"]] == [4, 2]
        for task, other in zip(one["tasks"], two["tasks"], strict=True):
            bits = task["overall"]["bits_per_byte"]
            assert bits == pytest.approx(other["overall"]["bits_per_byte"], rel=1e-4)
            assert task["overall"]["accuracy"] == other["overall"]["accuracy"]
    (_, event) = [e for e in read_records(tmp_path / "zero3/events.jsonl") if e["kind"] == "tasks"]
    assert event["task_accuracy/own"] == found[2][-1]["tasks"][1]["overall"]["accuracy"]


def test_a_resume_scores_its_own_tasks(words: Any, tmp_path: Path) -> None:
    specs = write_questions(tmp_path / "tasks")
    folder = tmp_path / "run"
    more = [f"train.eval_tasks={specs[0]}", "train.eval_tasks_steps=2"]
    assert run(1, words(folder, *more), signal_at=4)["code"] == 75
    more = [f"train.eval_tasks={specs[2]}", "train.eval_tasks_budget=1"]
    assert run(1, words(folder, *more), resume="auto")["code"] == 0
    tasks = {one["model"]["step"]: one["tasks"][0] for one in read_results(folder)}
    assert {step: task["task"] for step, task in tasks.items()} == {
        2: "ceval",
        4: "ceval",
        8: "own",
    }
    assert [tasks[step]["overall"]["questions"] for step in (2, 8)] == [4, 1]


def test_tasks_that_cannot_be_read_are_refused_at_the_start(words: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(1, words(folder, f"train.eval_tasks=ceval:{tmp_path}/absent"))
    assert (result["code"], folder.exists()) == (4, False), result["message"]
    assert "no val/SUBJECT_val.csv" in result["message"]
