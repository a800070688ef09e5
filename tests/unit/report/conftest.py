"""A real run that has survived a damaged checkpoint, with markup in its prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock
from harness.tiny_run import Words, run

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"


@pytest.fixture
def markup() -> str:
    """A text that is a script where it is not escaped."""
    return MARKUP


@pytest.fixture(scope="session")
def survivor(shared: Path, words: Words) -> Path:
    """Steps 1 to 8; the checkpoint of step 8 is damaged, and the run resumes from 4. Read-only.

    It ends with RUN/report.html, which the run has written itself.
    """
    folder = shared / "report" / "run"
    with FileLock(shared / "report.lock"):
        if not (folder / "report.html").exists():
            prompts = json.dumps(["中国的首都是", MARKUP], ensure_ascii=False)
            options = [f"observe.sample_prompts={prompts}"]
            options += ["observe.sample_tokens=8", "train.eval_steps=4"]
            given = words(folder, *options)
            first = run(1, given)
            assert first["code"] == 0, first["message"]
            last = folder / "checkpoints" / "checkpoint-8"
            largest = max(last.rglob("*"), key=lambda path: path.stat().st_size)
            os.truncate(largest, 100)
            (folder / "report.html").unlink()
            second = run(1, given, resume="auto")
            assert second["code"] == 0, second["message"]
    return folder
