"""After a rollback, a run resumes from what it wrote since then, not from the highest step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness.ledgers import assert_proven
from harness.programs import train_with_options
from harness.ranks import end_ranks
from harness.tiny_run import run

from wikillm.checkpoints.latest import find_complete
from wikillm.checkpoints.layout import list_checkpoints


@pytest.mark.parametrize("limit", [1, 3])
def test_resume_follows_the_branch_written_last(limit: int, words: Any, tmp_path: Path) -> None:
    """Train to 8, return to 4, stop at 6. The next start resumes from 6, which rotation kept."""
    folder = tmp_path / "run"
    checkpoints = tmp_path / "run" / "checkpoints"
    first = run(1, words(folder, "train.save_steps=2"))
    assert first["code"] == 0 and [path.name[-1] for path in list_checkpoints(checkpoints)] == [
        "8",
        "6",
        "4",
    ]

    limited = words(folder, "train.save_steps=2", f"train.save_total_limit={limit}")
    back = run(1, limited, resume=str(checkpoints / "checkpoint-4"), signal_at=5)
    assert back["code"] == 75 and "checkpoint-6" in back["message"], back["message"]
    assert "abandoned: checkpoint-8, checkpoint-6;" in back["output"]
    assert "checkpoint-6  0 B" not in back["output"]
    stay = {1: ["checkpoint-6"], 3: ["checkpoint-8", "checkpoint-6", "checkpoint-4"]}[limit]
    assert [path.name for path in list_checkpoints(checkpoints)] == stay
    assert ("removed" in back["output"]) == (limit == 1)
    assert find_complete(folder).name == "checkpoint-6", "what export, eval and generate take"

    again = run(1, limited, resume="auto")
    assert again["code"] == 0, again["message"]
    assert f"resuming   {checkpoints / 'checkpoint-6'} (step 6)" in again["output"]
    assert ("skipping checkpoint-8: it is abandoned" in again["output"]) == (limit == 3)
    assert again["losses"] == first["losses"]
    assert_proven(folder, 8, segments=3, superseded=4)
    assert find_complete(folder).name == "checkpoint-8"


def test_a_kill_before_the_first_save_does_not_undo_the_rollback(
    words: Any, tmp_path: Path
) -> None:
    """Train to 4, return to 1, killed at 2. The next start resumes from 1, not from 4."""
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    line = words(folder, "train.save_steps=1", "train.max_steps=4", "train.save_total_limit=4")
    first = run(1, line)
    assert first["code"] == 0, first["message"]
    options = {"resume": str(checkpoints / "checkpoint-1"), "kill_at": 1}
    assert end_ranks(train_with_options, 1, line, options) == [-9]
    again = run(1, line, resume="auto")
    assert again["code"] == 0, again["message"]
    assert "skipping checkpoint-4: it is abandoned" in again["output"]
    assert f"resuming   {checkpoints / 'checkpoint-1'} (step 1)" in again["output"]
    assert again["losses"] == first["losses"]
