"""Exported tokenizers of every kind give the ids of the training in plain transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from harness.foreign_tokenizers import KINDS, OF_QWEN2S_KIND, write_foreign
from harness.tiny_model import tiny_config, tiny_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.models.auto import tokenization_auto

from wikillm.core.errors import DataError
from wikillm.core.files import write_json
from wikillm.data.tokenizer.chat_template import read_chat_template
from wikillm.data.tokenizer.encoders import choose_encoder
from wikillm.data.tokenizer.tokenizer import copy_tokenizer, load_tokenizer, prompt_tokenizer
from wikillm.export import plain_transformers
from wikillm.export.check_before_training import predict_export
from wikillm.export.compare import compare_tokens
from wikillm.export.probe_texts import FIXED, probe_texts
from wikillm.export.tokenizer_files import model_type_for, tokenizer_files
from wikillm.export.weights import as_llama, skeleton, trained_logits
from wikillm.models.shape import ARCHITECTURES

TEXTS = (
    "第1号文章讲述一条河流的故事", "The quick brown fox 12345 jumps",
    " Don't 2024-05-06 naïve café.", "a  b\n\nc", " 你好", "１２３",
)  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """kind -> a store's copy of such a tokenizer."""
    base = tmp_path_factory.mktemp("foreign")
    for kind in KINDS:
        copy_tokenizer(write_foreign(kind, base / kind / "source"), base / kind / "tokenizer")
    return {kind: base / kind / "tokenizer" for kind in KINDS}


def write_folder(folder: Path, files: dict[str, str], model_type: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_json(folder / "config.json", {"model_type": model_type})
    return folder


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_training(
    stores: dict[str, Path], tmp_path: Path, kind: str, architecture: str
) -> None:
    trained = load_tokenizer(stores[kind])
    texts = probe_texts(trained)
    assert len(texts) > 300 and set(FIXED) <= set(texts)
    files = tokenizer_files(stores[kind], max_length=64)
    model_type = model_type_for(architecture, files["tokenizer.json"])
    changes = architecture == "qwen2" and kind not in OF_QWEN2S_KIND
    assert model_type == ("llama" if changes else architecture)
    folder = write_folder(tmp_path / "m", files, model_type)
    compare_tokens(plain_transformers.tokenize(str(folder), texts), trained, texts)

    auto = AutoTokenizer.from_pretrained(folder)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:  # nothing is added by a plain call, and nothing cut or padded
        plainly = raw.encode(text, add_special_tokens=False).ids
        assert auto(text)["input_ids"] == plainly == trained.encode(text)
        assert auto(text, return_tensors="pt").keys() == {"input_ids", "attention_mask"}
    assert (auto.eos_token_id, auto.model_max_length) == (trained.eos_id, 64)
    assert auto.pad_token_id is not None
    assert max(auto.get_vocab().values()) < trained.length, "no token is added that has no row"
    assert auto(f"a{trained.eos_token}")["input_ids"][-1] == trained.eos_id, (
        "a plain call knows special tokens"
    )


@pytest.mark.parametrize("kind", ["llama3", "llama", "unigram", "wordpiece"])
def test_qwen2s_model_type_would_give_other_ids(
    stores: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """transformers 5 opens any tokenizer in a qwen2 folder as Qwen2's."""
    trained = load_tokenizer(stores[kind])
    texts = probe_texts(trained)
    folder = write_folder(tmp_path / "m", tokenizer_files(stores[kind], max_length=64), "qwen2")
    with pytest.raises(DataError, match="would tokenize text differently") as caught:
        compare_tokens(plain_transformers.tokenize(str(folder), texts), trained, texts)
    assert "Qwen2Tokenizer" in str(caught.value.got) and "data.tokenizer=qwen2" in str(
        caught.value.fix
    )


def test_a_chat_template_and_special_tokens_stay(stores: dict[str, Path], tmp_path: Path) -> None:
    own = read_chat_template(stores["marked"])
    files = tokenizer_files(stores["marked"], max_length=64, template=own or "")
    assert "chat_template" not in str(tokenizer_files(stores["marked"], max_length=64))
    folder = write_folder(tmp_path / "m", files, "llama")
    auto = AutoTokenizer.from_pretrained(folder)
    ids = auto.apply_chat_template(
        [{"role": "user", "content": "你好 a"}], tokenize=True, return_dict=False
    )
    start, end = auto.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids[0] == start and ids[-1] == end
    assert ids[1:-1] == load_tokenizer(stores["marked"]).encode("你好 a")
    raw = Tokenizer.from_file(str(stores["marked"] / "tokenizer.json"))
    for text in ("a <image> b", "<think>x", " <image>"):
        assert auto(text)["input_ids"] == raw.encode(text, add_special_tokens=False).ids


def test_a_tokenizer_that_needs_no_change_keeps_its_bytes(stores: dict[str, Path]) -> None:
    original = (stores["qwen2"] / "tokenizer.json").read_text()
    assert tokenizer_files(stores["qwen2"], max_length=64)["tokenizer.json"] == original
    changed = json.loads(tokenizer_files(stores["wordpiece"], max_length=64)["tokenizer.json"])
    assert [changed[key] for key in ("post_processor", "truncation", "padding")] == [None] * 3


def test_a_tokenizer_json_without_added_tokens_opens(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    """The tokenizers library takes such a file, plain transformers raises KeyError for it."""
    source = shutil.copytree(stores["wordlevel"], tmp_path / "source")
    content = json.loads((source / "tokenizer.json").read_text())
    del content["added_tokens"]
    write_json(source / "tokenizer.json", content)
    trained = load_tokenizer(source)
    folder = write_folder(tmp_path / "m", tokenizer_files(source, max_length=64), "llama")
    compare_tokens(plain_transformers.tokenize(str(folder), [*FIXED]), trained, FIXED)


def test_a_literal_end_of_text_ends_no_document_whatever_its_flags(stores: dict[str, Path]) -> None:
    # Its eos_token is no special token in tokenizer.json.
    tokenizer = load_tokenizer(stores["marked"])
    assert tokenizer.eos_id not in tokenizer.encode("a<end>b")
    assert tokenizer.decode(tokenizer.encode("a<end>b")) == "a<end>b"
    assert choose_encoder("auto", stores["marked"].parent).startswith("tokenizers "), (
        "fastokens ends the document there"
    )


def test_dropout_is_off_and_prompts_are_not_padded(stores: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(stores["dropout"])
    text = "The quick brown fox jumps over the lazy dog. " * 5
    assert len({tuple(tokenizer.encode(text)) for _ in range(5)}) == 1
    prompt = prompt_tokenizer(stores["wordpiece"])
    assert prompt.encode("the dog " * 20, add_special_tokens=False).ids == load_tokenizer(
        stores["wordpiece"]
    ).encode("the dog " * 20)
    assert len(prompt.encode("[MASK]", add_special_tokens=False).ids) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_as_llama_the_model_computes_the_same(tied: bool, dtype: torch.dtype) -> None:
    model, ids = tiny_model(tied=tied, dtype=dtype).eval(), list(range(64))
    weights = dict(model.state_dict())
    if tied:
        del weights["lm_head.weight"]
    config = tiny_config(tied=tied)
    meant = trained_logits(config, weights, ids)
    # A cast to bfloat16 rounds the rotary frequencies too, and a load does not.
    if dtype == torch.float32:
        with torch.no_grad():
            assert torch.equal(meant, model(torch.tensor([ids])).logits)
    llama = as_llama(config, weights)
    assert type(skeleton(llama)) is LlamaForCausalLM
    assert torch.equal(trained_logits(llama, weights, ids), meant)
    for qwen3 in ("qwen3", "llama"):
        config.model_type = qwen3
        with pytest.raises(ValueError, match="not a plain Qwen2"):
            as_llama(config, weights)


def test_prepare_and_train_tell_before_the_hours_are_spent(
    stores: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict_export(stores["qwen2"], "qwen2")
    predict_export(stores["llama3"], "qwen3")
    assert capsys.readouterr() == ("", "")
    predict_export(stores["llama3"], "qwen2")
    captured = capsys.readouterr()
    assert "will write the model as llama" in captured.out and captured.err == ""
    # Another version of transformers, which treats llama as this one treats qwen2:
    monkeypatch.setitem(tokenization_auto.TOKENIZER_MAPPING_NAMES, "llama", "Qwen2Tokenizer")
    monkeypatch.setattr(tokenization_auto, "MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS", {"llama"})
    predict_export(stores["llama3"], "qwen2")
    error = capsys.readouterr().err
    assert "warning: `wikillm export` will refuse this run" in error and "fix: " in error
    predict_export(stores["qwen2"], "qwen2", init_from=str(stores["llama3"]))
    assert f"fix: data.tokenizer={stores['llama3']}" in capsys.readouterr().err
    predict_export(stores["qwen2"], "qwen2", init_from=str(stores["qwen2"]))
    predict_export(stores["qwen2"], "qwen2", init_from=str(tmp_path))
    assert capsys.readouterr().err == ""
