"""Fast encoders give the ids of `tokenizers`; one that does not is detected and replaced."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from harness.file_digests import digests
from hypothesis import given
from hypothesis import strategies as st

from wikillm.core.errors import ConfigError, DataError
from wikillm.data.prepare import prepare
from wikillm.data.prepare.build import ensure_store
from wikillm.data.prepare.prepare import plan_store, prepare_store
from wikillm.data.store.store import Store
from wikillm.data.tokenizer import encoders
from wikillm.data.tokenizer.encoders import (
    OPENERS,
    REFUSED_NAME,
    CheckedEncoder,
    EncoderDiffers,
    choose_encoder,
    fuzz_texts,
    open_encoder,
)
from wikillm.data.tokenizer.tokenizer import load_tokenizer

TOKENS = (".tok", ".idx")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "shard_range", lambda estimate: 3000)


def test_the_real_package_gives_the_ids_of_tokenizers(tokenizer_dir):
    encoder = open_encoder("fastokens", tokenizer_dir)
    texts = fuzz_texts()
    assert len(texts) > 400
    assert any("<|endoftext|>" in text for text in texts)
    encoded = encoder.encode_batch(texts)
    assert [list(map(int, ids)) for ids in encoded] == encoder.reference.encode_batch(texts)
    assert list(encoder.encode_batch([])) == []


@given(text=st.text(st.characters(exclude_categories=["Cs", "Mn", "Mc", "Lo"]), max_size=60))
def test_any_text_without_combining_characters_is_encoded_alike(tokenizer_dir, text):
    encoder = open_encoder("fastokens", tokenizer_dir)
    text = encoder.reference.backend.normalizer.normalize_str(text)
    (ids,) = encoder.encode_batch([text])
    assert list(map(int, ids)) == encoder.reference.encode(text)


def test_a_store_has_the_same_bytes_with_any_encoder_and_names_it(tmp_path, source, settings):
    path = source(150)
    found, names = [], []
    for setting in ("hf", "fastokens", "auto"):
        store = prepare_store(settings(path, backend=setting, store=str(tmp_path / setting)))
        found.append((digests(store.dir, *TOKENS), store.manifest.fingerprint))
        names.append(store.manifest.backend["name"])
        assert all(store.manifest.backend["version"][i].isdigit() for i in (0, -1))
    assert all(one == found[0] for one in found)
    assert names == ["tokenizers", "fastokens", "fastokens"]
    workers = prepare_store(
        settings(path, backend="fastokens", store=str(tmp_path / "workers"), workers=2)
    )
    assert digests(workers.dir, *TOKENS) == found[0][0]


def test_an_encoder_that_differs_on_the_fuzz_set_is_not_used(
    source, settings, wrong_encoder, capsys
):
    wrong_encoder("1984")
    store = prepare_store(settings(source(30), backend="fastokens"))
    assert store.manifest.backend["name"] == "tokenizers"
    assert "gives other ids than tokenizers" in "".join(capsys.readouterr())


@pytest.mark.parametrize("where", [0, 60, 100])
def test_shards_of_an_encoder_that_differs_are_built_again(
    tmp_path, texts, write_source, settings, wrong_encoder, capsys, where
):
    expected = texts(150)
    expected[where] += " 斩"  # neither in the fuzz set nor in another text
    path = write_source(tmp_path, "plain.jsonl", expected)
    wanted = prepare_store(settings(path, backend="hf", store=str(tmp_path / "hf")))
    wrong_encoder("斩")
    store = prepare_store(settings(path, backend="fastokens", store=str(tmp_path / "wrong")))
    assert "斩" not in "".join(fuzz_texts())
    assert store.manifest.backend["name"] == "tokenizers"
    assert {shard.backend.split()[0] for shard in store.manifest.shards} == {"tokenizers"}
    assert digests(store.dir, *TOKENS) == digests(wanted.dir, *TOKENS)
    assert "built again with tokenizers" in "".join(capsys.readouterr())
    refused = json.loads((store.dir / REFUSED_NAME).read_text())
    assert choose_encoder("fastokens", store.dir).startswith("tokenizers")  # refused for good
    assert len(refused) == 1


def test_an_encoder_that_raises_counts_as_different(tokenizer_dir):
    class Fails:
        def encode_batch(self, texts):
            raise RuntimeError("out of cheese")

    with pytest.raises(EncoderDiffers, match="failed on a text"):
        CheckedEncoder(load_tokenizer(tokenizer_dir), "fastokens", Fails()).encode_batch(["a"])


def test_an_encoder_that_cannot_open_the_tokenizer_is_skipped(
    tmp_path, tokenizer_dir, monkeypatch, capsys
):
    def refuse(folder: Path) -> None:
        raise encoders.Unusable("it does not open this tokenizer.json")

    shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    monkeypatch.setitem(OPENERS, "fastokens", refuse)
    encoders._opened.cache_clear()
    assert choose_encoder("fastokens", tmp_path).startswith("tokenizers ")
    assert "is not used" in "".join(capsys.readouterr())


def test_an_encoder_that_is_not_installed_is_refused_if_named(tmp_path, tokenizer_dir, monkeypatch):
    (tmp_path / "tokenizer").symlink_to(tokenizer_dir)

    def version(name: str) -> str:
        if name == "fastokens":
            raise encoders.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(encoders, "version", version)
    assert choose_encoder("auto", tmp_path) == "tokenizers 1.0"
    with pytest.raises(ConfigError, match="not installed") as caught:
        choose_encoder("fastokens", tmp_path)
    assert "wikillm[fast]" in caught.value.fix


@pytest.mark.parametrize("where, ends", [(0, False), (140, True)])
def test_an_encoder_that_differs_ends_a_build_whose_shards_a_run_has_read(
    tmp_path, texts, write_source, settings, wrong_encoder, where, ends
):
    """Before the first shard is final it starts anew; afterwards what was read must not change."""
    corpus = texts(150)
    corpus[where] += " 斩"
    path = write_source(tmp_path, "plain.jsonl", corpus)
    wrong_encoder("斩")
    plan = plan_store(settings(path, backend="fastokens", store=str(tmp_path / "s"), workers=1))
    plan = replace(plan, is_read=True)
    if ends:
        with pytest.raises(DataError, match="fastokens .* after a run had read") as caught:
            ensure_store(plan)
        assert "instead of" in caught.value.got and "data.backend=hf" in caught.value.fix
        assert not list((plan.store / "shards").glob("*.json")), "none of its shards is kept"
    ensure_store(plan)  # it is not used again
    shards = Store.open(plan.store).manifest.shards
    assert {shard.backend.split()[0] for shard in shards} == {"tokenizers"}
    assert digests(plan.store, *TOKENS) == digests(
        prepare_store(settings(path, backend="hf")).dir, *TOKENS
    )
