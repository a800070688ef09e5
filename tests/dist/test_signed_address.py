"""Training from a signed URL: the run's files omit the signature and can still be inspected."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness.file_server import serve
from harness.programs import train_with_options
from harness.ranks import run_ranks
from harness.tiny_run import Words

from wikillm.cli.main import main

CANARY = "canary0123456789abcdef"


def test_the_signature_stays_out_of_run_store_cache_and_logs(
    words: Words, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(corpus, served / "corpus.jsonl")
    with serve(served) as server:
        url = f"{server.url}/corpus.jsonl?X-Amz-Expires=60&X-Amz-Signature={CANARY}"
        line = words(
            run,
            "train.max_steps=2",
            "train.save_steps=2",
            "train.warmup_steps=1",
            "train.eval_steps=null",
        )
        own = [
            f"data.path={url}",
            f"data.store={tmp_path / 'store'}",
            f"data.cache={tmp_path / 'cache'}",
        ]
        line = [word for word in line if not word.startswith(("data.path=", "data.store="))] + own
        (result,) = run_ranks(train_with_options, 1, line, {})
    assert result["code"] == 0, result["message"]
    assert CANARY not in result["output"] and CANARY not in result["message"]
    seen = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run / "config.resolved.yaml" in seen and tmp_path / "store" / "manifest.json" in seen
    assert [path for path in seen if CANARY.encode() in path.read_bytes()] == []
    assert "corpus.jsonl?***" in (run / "config.resolved.yaml").read_text()
    # The server has stopped, and the URL in RUN has no signature. The store contains the text.
    assert main(["eval", str(run)]) == 0, capsys.readouterr().err
    assert "bits/byte" in capsys.readouterr().out
    assert (
        main(
            [
                "train",
                "--config",
                str(run / "config.resolved.yaml"),
                f"run.dir={tmp_path / 'again'}",
            ]
        )
        == 2
    )
    assert "has lost its query" in capsys.readouterr().err
