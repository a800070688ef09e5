"""environment.json records the command line as it was typed, without secrets."""

from __future__ import annotations

import pytest

from wikillm.train import run_dir


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("data.tokenizer=train:8000", "data.tokenizer=train:8000"),
        ("train.max_tokens=5B", "train.max_tokens=5B"),
        ("--api_key=abc", "--api_key=***"),
        ("--hub-token=abc", "--hub-token=***"),
        ("data.path=https://user:pass@host/x", "data.path=https://***@host/x"),
        ("data.path=https://host/x.jsonl?a=1", "data.path=https://host/x.jsonl?***"),
        ("data.path=[https://host/x?sig=1,s3://b/y?versionId=2]", "data.path=[https://host/x?***"),
        ("run.name=LTAI5tAbCdEfGhIjKlMnOpQr", "run.name=***"),
    ],
)
def test_secrets_go_and_settings_stay(
    typed: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_dir.sys, "argv", ["train.py", typed])
    assert run_dir.describe_environment()["command"] == ["train.py", kept]
