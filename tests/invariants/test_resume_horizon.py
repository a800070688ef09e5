"""The horizon after a resume counts the samples trained on, whatever their batch size was."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness.ledgers import replay
from harness.ranks import run_ranks
from harness.reference import References
from harness.resume_programs import train_noting_settings
from harness.tiny_run import run

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.checkpoints.manifest import read_state
from wikillm.config.load import load
from wikillm.observe.sinks import read_metrics
from wikillm.plan.schedule import learning_rate_at

SHORT = (
    "data.val_fraction=0.1",
    "train.max_steps=null",
    "train.save_steps=1000",
    "train.eval_steps=null",
)


def test_with_a_doubled_batch_the_horizon_is_the_same_share_of_the_corpus(
    words: Any, tmp_path: Path
) -> None:
    """A tenth of the corpus at 64 sequences a step, a tenth at 128. Epochs count samples."""
    folder = tmp_path / "run"
    first = run(
        1, words(folder, *SHORT, "train.num_train_epochs=0.1", "train.global_batch_tokens=2048")
    )
    assert first["code"] == 0, first["message"]
    (half,) = list_checkpoints(folder / "checkpoints")
    done = int(half.name.removeprefix("checkpoint-"))
    consumed = read_state(half)["consumed_samples"]
    corpus = round(consumed / json.loads((folder / "plan.json").read_text())["epochs"])
    assert consumed == 64 * done and f"done       {done} steps" in first["output"]

    line = words(folder, *SHORT, "train.num_train_epochs=0.2", "train.global_batch_tokens=4096")
    refused = run(1, line, resume="auto")
    assert refused["code"] == 6 and "--allow-change" in refused["message"]

    total = done + math.ceil((math.ceil(0.2 * corpus) - consumed) / 128)
    rest = run(1, line, train_noting_settings, resume="auto", allow_change=True)
    assert rest["code"] == 0, rest["message"]
    assert f"done       {total} steps, the last {total - done} in" in rest["output"]
    assert f"changed on resume: horizon {done} -> {total} steps" in rest["output"]
    assert "changed on resume: global_batch_tokens 2048 -> 4096" in rest["output"]
    assert read_state(folder / "checkpoints" / f"checkpoint-{total}")[
        "consumed_samples"
    ] == consumed + 128 * (total - done)
    assert rest["max_steps"] == total and rest["global_batch"] == 128

    again = run(1, line, resume="auto")  # again with the same horizon
    assert again["code"] == 0 and f"done       {total} steps" in again["output"], again["message"]
    assert "nothing is left to train" in again["output"]
    assert "changed on resume" not in again["output"] and "abandoned" not in again["output"]


@pytest.mark.parametrize("recipe", [None, "zero2"])
def test_a_longer_horizon_holds_from_the_first_step(
    recipe: str | None, words: Any, tmp_path: Path
) -> None:
    """The rate was 0 after step 4 of 4. With 12 steps, step 5 has the longer schedule's rate."""
    folder = tmp_path / "run"
    share = "train.warmup_steps=0.25"  # of the horizon: 1 step, then 3
    assert run(1, words(folder, share, "train.max_steps=4"), deepspeed=recipe)["code"] == 0
    longer = words(folder, share, "train.max_steps=12", "train.save_steps=100")
    assert run(1, longer, deepspeed=recipe, resume="auto")["code"] == 6
    found = run(1, longer, deepspeed=recipe, resume="auto", allow_change=True)
    assert found["code"] == 0, found["message"]
    assert "done       12 steps, the last 8 in" in found["output"]
    assert "changed on resume: max_steps 4 -> 12" in found["output"]
    assert "changed on resume: warm-up 1 -> 3 steps" in found["output"]
    train = load(None, ["train.max_steps=12", "train.learning_rate=1e-2"]).config.train
    logged = {
        record["step"]: record["learning_rate"] for record in read_metrics(folder / "metrics.jsonl")
    }
    wanted = {
        step: learning_rate_at(train, step, max_steps=12, warmup_steps=3) for step in range(5, 13)
    }
    assert {step: logged[step] for step in wanted} == pytest.approx(wanted)
    # A replay takes the checkpoint of the shorter horizon, as that start did.
    (again,) = run_ranks(replay, 1, str(folder), 6, str(tmp_path / "work"))
    assert again["verdict"] == "data" and again["checkpoint"] == "checkpoint-4"


def test_an_evaluation_that_a_stop_left_out_at_the_end_follows_on_resume(
    words: Any, references: References, tmp_path: Path
) -> None:
    """SIGTERM in the last step: its checkpoint is saved, and its evaluation comes with the next
    start."""
    whole = references(1)
    stopped = run(1, words(tmp_path / "run"), signal_at=7)
    assert stopped["code"] == 75 and stopped["exit"]["step"] == 8 and stopped["eval"] == []
    resumed = run(1, words(tmp_path / "run"), resume="auto")
    assert resumed["code"] == 0 and resumed["eval"] == whole["eval"], resumed["output"]
    shutil.copytree(whole["folder"], tmp_path / "whole")
    again = run(1, words(tmp_path / "whole"), resume="auto")
    assert again["code"] == 0 and again["eval"] == whole["eval"], "it is not evaluated again"
