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


def assert_same_run(result: dict[str, Any], folder: Path, reference: dict[str, Any]) -> None:
    assert result["code"] == 0, result["message"]
    assert result["losses"] == reference["losses"]
    last = [one / "checkpoints" / "checkpoint-8" for one in (folder, reference["folder"])]
    assert tensor_digest(last[0]) == tensor_digest(last[1])


def test_tasks_do_not_change_the_run(words: Any, references: References, tmp_path: Path) -> None:
    """Two ranks with ZeRO-3, and one rank that is stopped and resumed with other tasks."""
    ceval, _, own = write_questions(tmp_path / "tasks")
    two = tmp_path / "two"
    every = "train.eval_tasks_steps=4"
    result = run(2, words(two, f"train.eval_tasks={ceval},{own}", every), deepspeed="zero3")
    assert_same_run(result, two, references(2, deepspeed="zero3"))

    one = tmp_path / "one"
    first = words(one, f"train.eval_tasks={ceval}", every)
    assert run(1, first, deepspeed="zero1", signal_at=5)["code"] == 75
    other = words(one, f"train.eval_tasks={own}", "train.eval_tasks_budget=1")
    result = run(1, other, deepspeed="zero1", resume="auto")
    assert_same_run(result, one, references(1, deepspeed="zero1"))

    # Both record the same scores of the same step; the resume scored its own task.
    records = [{r["model"]["step"]: r["tasks"] for r in read_results(each)} for each in (one, two)]
    assert [[*each] for each in records] == [[4, 8], [4, 8]]
    by_one, by_two = (each[4][0]["overall"] for each in records)
    assert (by_one["questions"], by_one["accuracy"]) == (4, by_two["accuracy"])
    assert by_one["bits_per_byte"] == pytest.approx(by_two["bits_per_byte"], rel=1e-4)
    (after,) = records[0][8]
    assert (after["task"], after["overall"]["questions"]) == ("own", 1)
    (_, event) = [e for e in read_records(two / "events.jsonl") if e["kind"] == "tasks"]
    assert event["task_accuracy/own"] == records[1][8][1]["overall"]["accuracy"]


def test_tasks_that_cannot_be_read_are_refused_at_the_start(words: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(1, words(folder, f"train.eval_tasks=ceval:{tmp_path}/absent"))
    assert (result["code"], folder.exists()) == (4, False), result["message"]
    assert "no val/SUBJECT_val.csv" in result["message"]
