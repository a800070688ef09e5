"""Documents with escape sequences through the commands that show text of a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wikillm.cli.main import main

ATTACK = "\x1b]52;c;ZWNobw==\x07\x1b[2J\x1b[31m\x9b2J\u202eevil\u202c\x08\x7f"
CONTROLS = set("\x1b\x07\x9b\u202e\u202c\x08\x7f\r")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"text": f"document {n} 你好 {ATTACK} " + "the end of it " * 30})
        for n in range(40)
    ]
    (tmp_path / "\x1b[31mcorpus.jsonl").write_text("\n".join(lines))
    folder = tmp_path / "store"
    words = "data.tokenizer=train:600 data.min_val_tokens=20 data.val_fraction=0.1 data.workers=1"
    place = [f"data.path={tmp_path}/\x1b[31mcorpus.jsonl", f"data.store={folder}"]
    assert main(["prepare", *place, *words.split()]) == 0
    return folder


def test_no_command_sends_what_a_document_holds(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    captured = capfd.readouterr()
    assert not CONTROLS & set(captured.out + captured.err)
    at = ["--store", str(store)]
    for words in (
        ["stats"],
        ["show", "0"],
        ["show", "0", "--sample", "--sequence-length", "64"],
        ["tokenizer"],
        ["verify"],
    ):
        assert main(["data", *words, *at]) == 0
        shown = capfd.readouterr().out
        assert not CONTROLS & set(shown), words
        if words[0] == "show":
            assert "你好" in shown and "\\u001b]52;c;ZWNobw==" in shown
    assert main(["data", "show", "0", *at, "--json"]) == 0
    as_json = capfd.readouterr().out
    assert not CONTROLS & set(as_json)
    assert "\x1b[31m" not in capfd.readouterr().out
    text = json.loads(as_json)["text"]
    assert "\u202eevil\u202c" in text, "a program gets the document itself"
