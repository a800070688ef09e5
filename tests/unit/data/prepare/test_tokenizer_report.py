"""The figures of the report, counted again in another way."""

from __future__ import annotations

import json

import numpy as np

from wikillm.cli.main import main
from wikillm.data.prepare import tokenizer_report
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.tokenizer import find


def test_the_tokenizer_report_counts_hanzi_and_unused_tokens(source, settings, capsys, monkeypatch):
    monkeypatch.setattr(tokenizer_report, "_BATCH_TOKENS", 300)
    path = source(300)
    store = prepare_store(settings(path, tokenizer="train:500"))
    assert "distinct hanzi are one token" in capsys.readouterr().out  # logged after training
    kept = json.loads((store.dir / "tokenizer_report.json").read_text(encoding="utf-8"))
    tokenizer = store.tokenizer()
    ends = [0, *store.val.document_ends().tolist()]
    found = [
        tokenizer.decode(store.val.read(a, b - 1).tolist())
        for a, b in zip(ends, ends[1:], strict=False)
    ]
    assert kept["text_bytes"] == store.val.text_bytes
    assert kept["tokens"] == store.val.n_tokens - store.val.n_documents
    assert kept["bytes_per_token"] == store.val.text_bytes / kept["tokens"]
    hanzi = {letter for text in found for letter in text if "\u4e00" <= letter <= "\u9fff"}
    single = {letter for letter in hanzi if len(tokenizer.encode(letter)) == 1}
    assert (kept["hanzi"], kept["hanzi_one_token"]) == (len(hanzi), len(single))
    assert 0 < len(single) < len(hanzi)
    letters = [letter for text in found for letter in text if letter in hanzi]
    assert kept["hanzi_share_of_text"] == sum(letter in single for letter in letters) / len(letters)
    counts = store.train.count_tokens(tokenizer.length)
    assert kept["unused"] == int(np.sum(counts == 0)) >= 2  # the special tokens but EOS, at least
    assert kept["counted_tokens"] == store.train.n_tokens
    given = prepare_store(settings(path))  # the report is of a tokenizer that was trained here
    assert not (given.dir / "tokenizer_report.json").exists()
    assert tokenizer_report.report_of_store(given)["vocabulary"] == 400


def test_a_tokenizer_is_compared_with_qwen2s_if_that_is_found(
    source, settings, tokenizer_dir, monkeypatch, capsys
):
    path = source(200)
    store = prepare_store(settings(path, tokenizer="train:300"))
    capsys.readouterr()
    assert main(["data", "tokenizer", "--store", str(store.dir), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone.pop("qwen2") is None
    assert alone == json.loads((store.dir / "tokenizer_report.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(find, "_is_qwen2", lambda tokenizer: True)  # the fixture's passes for it
    monkeypatch.setenv("WIKILLM_TOKENIZER", str(tokenizer_dir))
    assert main(["data", "tokenizer", "--store", str(store.dir), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)["qwen2"]
    assert other["vocabulary"] == 400
    assert (other["text_bytes"], other["hanzi"]) == (alone["text_bytes"], alone["hanzi"])
    assert other["bytes_per_token"] > alone["bytes_per_token"]
    assert main(["data", "tokenizer", "--store", str(store.dir)]) == 0
    assert "Qwen2's" in capsys.readouterr().out
