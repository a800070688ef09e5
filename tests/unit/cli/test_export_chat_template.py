"""`wikillm export --chat-template`: the folder's template, its tokens, and where an answer ends."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from harness.tiny_model import EOS, tiny_model, write_checkpoint, write_tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig

from wikillm.cli.main import main
from wikillm.core.errors import ExitCode
from wikillm.data.tokenizer.chat_template import CHATML, read_chat_template

pytestmark = pytest.mark.usefixtures("warm_proofs")
MESSAGES = [{"role": "user", "content": "你好"}]
RENDERED = "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"


def write_run(folder: Path, *, marks: bool, init_from: str = "null") -> Path:
    """A run whose tokenizer has ChatML's tokens, and a template, where `marks` is set."""
    run = folder / "run"
    write_checkpoint(run, tiny_model(), step=7)
    tokenizer = write_tokenizer(run / "tokenizer", ["你好", "The history of it."] * 20)
    if marks:
        backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        backend.save(str(tokenizer / "tokenizer.json"))
        (tokenizer / "chat_template.jinja").write_text(CHATML)
    model = f"model: {{preset: tiny, init_from: {init_from}}}\n"
    (run / "config.resolved.yaml").write_text("run: {name: small, seed: 42}\n" + model)
    return run


def test_chatml_is_written_for_transformers_and_ends_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, marks=True)
    folder = tmp_path / "m"
    assert main(["export", str(run), "--to", str(folder), "--chat-template", "chatml"]) == 0
    shown = capsys.readouterr().out
    assert "proved" in shown and f"wikillm chat {folder}" in shown
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered == RENDERED
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHATML == read_chat_template(folder)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", EOS])
    assert GenerationConfig.from_pretrained(folder).eos_token_id == ends
    assert tokenizer.eos_token == EOS
    card = (folder / "README.md").read_text()
    assert "chat template (chatml)" in card and "对话模板（chatml）" in card
    # `wikillm chat` uses it.
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("你好".encode()), "utf-8"))
    assert main(["chat", str(folder), "--max-new-tokens", "5", "--device", "cpu"]) == 0
    assert "base model" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("init_from", "words", "kept"),
    [("null", [], False), ("null", ["tokenizer"], True), ("/m/Qwen2", [], True)],
)
def test_the_tokenizers_own_template_is_kept_where_the_model_may_know_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    init_from: str,
    words: list[str],
    kept: bool,
) -> None:
    run = write_run(tmp_path, marks=True, init_from=init_from)
    folder = tmp_path / "m"
    flags = ["--chat-template", *words] if words else []
    assert main(["export", str(run), "--to", str(folder), *flags]) == 0
    assert ("template is left out" in capsys.readouterr().out) is not kept
    assert read_chat_template(folder) == (CHATML if kept else None)
    assert ("chat template (the tokenizer's own)" in (folder / "README.md").read_text()) is kept


def test_a_template_that_cannot_work_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, marks=False)
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for")
    cases = {
        "chatml": "<|im_end|>, <|im_start|>",
        "tokenizer": "The tokenizer has no chat template.",
        str(broken): "The chat template cannot be applied.",
        "chatlm": "neither a known name nor a readable file",
    }
    for name, told in cases.items():
        words = ["export", str(run), "--to", str(tmp_path / "m"), "--chat-template", name]
        assert main(words) == ExitCode.CONFIG
        assert told in capsys.readouterr().err
        assert not (tmp_path / "m").exists()
