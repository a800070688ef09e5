"""`wikillm chat` on a terminal and in a pipe, as a user types it."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from harness.ranks import start_ranks
from harness.terminal import command_on_terminal, terminal
from harness.tiny_model import tiny_model, write_tokenizer

from wikillm.cli.main import main

BASE = "This is a base model: it continues your text; it does not answer questions."
PLAIN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes for a long time, with a tokenizer that has no hanzi."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model()
    model.config.max_position_embeddings = 100_000
    model.save_pretrained(folder)
    return write_tokenizer(folder, ["The history of it."])


def pipe(text: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8"))
    return main(["chat", *words, "--device", "cpu", "--max-new-tokens", "12"])


def test_lines_of_a_pipe_are_continued_as_generate_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", "从前", "--device", "cpu", "--max-new-tokens", "12"]
    assert main(["generate", str(folder), *words]) == 0
    generated = capsys.readouterr().out
    assert pipe("从前\n/reset\n\n/exit\nnever", str(folder), monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr()
    assert shown.out == generated and shown.out.startswith("从前")
    assert shown.err.splitlines()[-2:] == [BASE, "Started a new conversation."]


def test_a_template_answers_without_the_question(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "tokenizer_config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"chat_template": PLAIN}))
    try:
        assert pipe("你好\nagain", str(folder), monkeypatch=monkeypatch) == 0
    finally:
        config.write_text(before)
    shown = capsys.readouterr()
    assert BASE not in shown.err and "你好" not in shown.out and len(shown.out) > 2


def test_on_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves(folder: Path) -> None:
    words = ["chat", str(folder), "--device", "cpu", "--max-new-tokens", "90000"]
    with terminal() as tty:
        channels, (process,) = start_ranks(command_on_terminal, 1, (words, tty.path), {})
        tty.wait_for("> ")
        assert BASE in tty.text
        # An answer begins, and is stopped.
        tty.send("从前\n")
        tty.wait_for("从前")
        start = len(tty.text)
        for _ in range(6000):
            if len(tty.text) > start + 40:
                break
            time.sleep(0.01)
        tty.send("\x03")
        tty.wait_for("> ", count=2)
        # At the prompt one Ctrl-C warns, and Ctrl-D leaves.
        tty.send("\x03")
        tty.wait_for("Ctrl-C again, or Ctrl-D, leaves.")
        tty.wait_for("> ", count=3)
        tty.send("\x04")
        assert channels[0].poll(60), tty.text
        assert channels[0].recv() == ("ok", 0)
        process.join(timeout=10)
    assert "\ufffd" not in tty.text and "Traceback" not in tty.text
