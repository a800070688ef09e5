"""Bits per byte of texts: the same for two tokenizers, every token scored once, any batch size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from harness.tiny_model import tiny_model, write_tokenizer
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from wikillm.config.schema_data import DataSection
from wikillm.data.inspect.documents import read_documents
from wikillm.data.text.script import script_of
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer
from wikillm.evals.likelihood import TokenSequence, negative_log_likelihoods, windows
from wikillm.evals.text import start_id, text_losses

DOCUMENTS = [
    ("a", "北京是中国的首都，长江从西向东流。"),
    ("a", "北京是中國的首都，長江從西向東流。"),
    ("b", "The history of the town begins with a bridge over the river."),
    ("b", "x"),
]


class NineBitsPerByte(nn.Module):
    """Gives every token 9 bits for each of its bytes, and EOS 9 bits; id 0 takes the rest."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        super().__init__()
        sizes = [0] * tokenizer.length
        for token, number in tokenizer.backend.get_vocab().items():
            sizes[number] = 1 if number == tokenizer.eos_id else len(token)
        share = torch.tensor([2.0 ** (-9 * size) for size in sizes], dtype=torch.float64)
        self.log_share = torch.cat([share, (1 - share.sum())[None]]).log().float()

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int, **_: object) -> object:
        rows = self.log_share.expand(len(input_ids), logits_to_keep, -1)
        return CausalLMOutputWithPast(logits=rows)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[TextTokenizer]:
    """One token per byte, and one with merges: byte-level, so each character stands for a byte."""
    folder = tmp_path_factory.mktemp("tokenizers")
    texts = [text for _, text in DOCUMENTS] * 20
    return [load_tokenizer(write_tokenizer(folder / str(n), texts, n)) for n in (257, 400)]


def test_two_tokenizers_give_the_same_bits_per_byte(tokenizers: list[TextTokenizer]) -> None:
    for limit in (7, 512):
        found = [
            text_losses(
                NineBitsPerByte(tokenizer), tokenizer, DOCUMENTS, limit=limit, batch_size=3,
                device="cpu",
            )
            for tokenizer in tokenizers
        ]  # fmt: skip
        size = sum(len(text.encode()) for _, text in DOCUMENTS)
        assert found[0].of().tokens == size + len(DOCUMENTS), "one target per byte, and EOS"
        assert found[1].of().tokens < found[0].of().tokens / 2
        for result in found:
            total = result.of()
            assert (total.text_bytes, total.documents) == (size, 4)
            assert total.bits_per_byte == pytest.approx(9 * (size + 4) / size, rel=1e-5)
            # One document of one byte: 9 bits for it and 9 for its EOS.
            assert result.of(source="b", script="other").documents == 2
            assert result.of(script="traditional").text_bytes == len(DOCUMENTS[1][1].encode())
        assert found[0].of().perplexity == pytest.approx(2**9, rel=1e-4), "of one byte"
        assert found[1].of().perplexity > 2**18, "not comparable between tokenizers"


def test_every_token_is_scored_once_with_enough_before_it() -> None:
    for length in (2, 9, 10, 11, 40, 41):
        ids = list(range(length))
        scored = []
        for window in windows(ids, 9):
            assert len(window.ids) <= 10
            assert window.first >= (5 if scored else 1)
            scored += window.ids[window.first :]
        assert scored == ids[1:]


def test_the_likelihood_does_not_depend_on_the_batch() -> None:
    model = tiny_model().train()
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for length, first in ((2, 1), (5, 4), (30, 1), (30, 29), (17, 9), (64, 40)):
        ids = torch.randint(0, 512, (length,), generator=generator).tolist()
        sequences.append(TokenSequence(ids, first))
    expected = []
    for sequence in sequences:
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([sequence.ids[:-1]])).logits[0].double()
        losses = nn.functional.cross_entropy(
            logits, torch.tensor(sequence.ids[1:]), reduction="none"
        )
        expected.append(float(losses[sequence.first - 1 :].sum()))
    model.train()
    for batch_size in (1, 2, 6):
        found = negative_log_likelihoods(
            model, sequences, batch_size=batch_size, device="cpu", forwards=batch_size
        )
        assert found == pytest.approx(expected, rel=1e-5)
    assert all(module.training for module in model.modules()), "the mode is restored"
    stopped = negative_log_likelihoods(
        model, sequences, batch_size=2, device="cpu", should_stop=lambda: True
    )
    assert stopped is None


def test_the_start_is_the_templates_or_eos(tokenizers: list[TextTokenizer]) -> None:
    from tokenizers.processors import TemplateProcessing

    plain = tokenizers[0].backend
    assert start_id(plain, 0) == 0
    assert start_id(plain, 77) == 77
    plain.post_processor = TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 5)])
    assert start_id(plain, 0) == 0, "an end of text is not a start"
    plain.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 5)])
    assert start_id(plain, 0) == 5


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("维基百科是一个自由的百科全书", "simplified"),
        ("維基百科是一個自由的百科全書", "traditional"),
        ("中文", "simplified"),  # the same in both
        ("日本語の文章はひらがなを使います", "other"),
        ("English with one 汉字", "other"),
        ("12 + 3", "other"),
    ],
)
def test_script_of(text: str, script: str) -> None:
    assert script_of(text) == script


def test_documents_are_read_as_prepare_reads_them(tmp_path: Path) -> None:
    lines = [json.dumps({"body": f"文章 {n}"}, ensure_ascii=False) for n in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_text("One.\nTwo.\n")
    paths = tuple(str(tmp_path / name) for name in ("a.jsonl", "b.txt"))
    found = list(read_documents(DataSection(path=paths, text_key="body")))
    assert [text for _, text in found] == [*(f"文章 {n}" for n in range(5)), "One.\nTwo."]
    size = len("文章 0".encode())
    limited = list(read_documents(DataSection(path=paths, text_key="body"), size + 1))
    assert len([source for source, _ in limited if source == paths[0]]) == 2
    assert math.isclose(len(limited), 3)
