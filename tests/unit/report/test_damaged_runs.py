"""Files with other values than a run writes give a page or a refusal, never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wikillm.report.page import render
from wikillm.report.run_files import read_run

FILES = ("metrics.jsonl", "events.jsonl", "data.json", "plan.json", "environment.json",
         "outcome.json", "exit.json", "diverged.json")  # fmt: skip
ODD: list[Any] = [None, True, -1, 10**30, 10**400, 1e308, "", "<b>", [], [[]], {}, {"a": [1]}]


@pytest.fixture(scope="module")
def copy(survivor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(survivor, run, ignore=shutil.ignore_patterns("checkpoints"))
    document = {"source": "x", "offset": 1, "document": 2}
    batch = {"rank": 0, "micro_step": 0, "loss": None, "documents": [document]}
    (run / "diverged.json").write_text(json.dumps({"step": 3, "micro_batches": [batch]}))
    return run


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within a JSON value, itself included."""
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(found for key, part in inner for found in places(part, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """The value with one part of it replaced."""
    if not path:
        return by
    changed = value.copy()
    changed[path[0]] = replaced(value[path[0]], path[1:], by)
    return changed


@settings(max_examples=20)
@given(data=st.data())
def test_any_value_at_any_place_of_a_file_gives_a_page(copy: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    path = copy / name
    whole = path.read_text()
    lines = whole.splitlines() if name.endswith("l") else [whole]
    number = data.draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[number])
    place = data.draw(st.sampled_from(places(value)))
    lines[number] = json.dumps(replaced(value, place, data.draw(st.sampled_from(ODD))))
    try:
        path.write_text("\n".join(lines) + "\n")
        run = read_run(copy)
        render([run])
        render([run, run], price=2.0)
    finally:
        path.write_text(whole)
