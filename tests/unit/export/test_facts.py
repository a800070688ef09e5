"""What a model card says of a run, from the run's own records."""

from __future__ import annotations

import json
from pathlib import Path

from wikillm.config.load import load, to_yaml
from wikillm.export.facts import read_facts


def test_the_card_has_the_micro_batch_that_auto_chose(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (tmp_path / "config.resolved.yaml").write_text(to_yaml(load("demo", ["data.path=a.jsonl"])))
    plan = {"micro_batch": 4, "global_batch_tokens": 1024, "max_steps": 400}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    training = read_facts(checkpoint).training
    assert training["train.per_device_train_batch_size"] == 4
    assert training["train.global_batch_tokens"] == 1024
    assert "train.max_micro_batch_tokens" not in training
