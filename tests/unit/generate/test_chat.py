"""Streamed text is whole characters; a conversation keeps its turns and fits the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness.tiny_model import EOS, tiny_model, write_tokenizer
from tokenizers import Tokenizer

from wikillm.core.errors import ConfigError
from wikillm.data.tokenizer.chat_template import CHATML, check_chat_template
from wikillm.data.tokenizer.tokenizer import load_tokenizer, prompt_tokenizer
from wikillm.generate.chat import Conversation
from wikillm.generate.complete import Sampling, encode
from wikillm.generate.load import LoadedModel
from wikillm.generate.stream import TextPieces

PLAIN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
TEXT = "从前有座山，山里有座庙。\n𠀀 once 🙂"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["abc"])  # no hanzi is a token


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return prompt_tokenizer(folder)


def conversation(folder: Path, template: str | None) -> Conversation:
    loaded = LoadedModel(tiny_model().eval(), prompt_tokenizer(folder), load_tokenizer(folder))
    return Conversation(loaded, Sampling(max_new_tokens=8), template)


def test_hanzi_of_three_tokens_are_streamed_whole(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, TEXT)
    assert len(ids) > 2 * len(TEXT)
    pieces: list[str] = []
    streamer = TextPieces(tokenizer, pieces.append)
    streamer.put(torch.tensor([ids]))  # the prompt
    for token in ids:
        streamer.put(torch.tensor([token]))
    assert "".join(pieces) == TEXT == streamer.text
    assert {len(piece) for piece in pieces} == {1}


@pytest.mark.parametrize("cut", [1, 2])
def test_bytes_that_are_no_character_are_left_out(tokenizer: Tokenizer, cut: int) -> None:
    ids = encode(tokenizer, "山")[:cut] + encode(tokenizer, "水") + encode(tokenizer, "火")[:cut]
    streamer = TextPieces(tokenizer, lambda piece: None)
    streamer.put(torch.tensor([[0]]))
    for token in ids:
        streamer.put(torch.tensor([token]))
    assert streamer.text == "水"


def test_a_base_model_continues_the_last_text(folder: Path) -> None:
    talk = conversation(folder, None)
    written: list[str] = []
    first = talk.answer("ab", written.append, lambda: False)
    assert first.tokens == 8 and talk.text == "ab" + first.text == "ab" + "".join(written)
    second = talk.answer("", written.append, lambda: False)
    assert talk.text == "ab" + first.text + second.text
    again = conversation(folder, None).answer("ab", written.append, lambda: False)
    assert again == first


def test_a_template_keeps_the_turns_and_drops_the_oldest(folder: Path) -> None:
    talk = conversation(folder, PLAIN)
    texts = "abcdef"
    left_out = [talk.answer(text, lambda piece: None, lambda: False).left_out for text in texts]
    assert left_out[0] == 0 and sum(left_out) > 0 and sum(left_out) % 2 == 0
    assert [each["role"] for each in talk.messages] == ["user", "assistant"] * (
        6 - sum(left_out) // 2
    )
    assert talk.messages[-2]["content"] == "f"
    assert talk.text.startswith("u:") and "u:f\n" in talk.text
    talk.reset()
    assert talk.answer("x", lambda piece: None, lambda: False).left_out == 0
    assert len(talk.messages) == 2


def test_a_message_that_does_not_fit_is_refused_and_forgotten(folder: Path) -> None:
    for template in (PLAIN, None):
        talk = conversation(folder, template)
        with pytest.raises(ConfigError, match="positions"):
            talk.answer("山" * 40, lambda piece: None, lambda: False)
        assert not talk.messages and not talk.text


def test_a_stopped_answer_is_kept(folder: Path) -> None:
    talk = conversation(folder, PLAIN)
    answer = talk.answer("a", lambda piece: None, lambda: True)
    assert answer.tokens == 1 and talk.messages[-1] == {"role": "assistant", "content": answer.text}


def test_the_end_of_a_turn_is_found_or_the_template_refused() -> None:
    vocabulary = {EOS: 0, "<|im_start|>": 1, "<|im_end|>": 2, "a": 3}
    assert check_chat_template(CHATML, vocabulary, EOS) == "<|im_end|>"
    assert check_chat_template(PLAIN, vocabulary, EOS) == EOS
    with pytest.raises(ConfigError, match="lacks special tokens") as caught:
        check_chat_template(CHATML, {EOS: 0}, EOS)
    assert caught.value.got == "<|im_end|>, <|im_start|>"
    for bad in ("{% for", "{{ raise_exception('no') }}", "constant"):
        with pytest.raises(ConfigError, match="chat template"):
            check_chat_template(bad, vocabulary, EOS)
