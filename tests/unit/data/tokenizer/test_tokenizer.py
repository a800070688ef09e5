"""Tokenizers: opened safely, found in the documented order, trained the same way every time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.loopback import Handler, serving
from tokenizers import Tokenizer

from wikillm.config.trained_tokenizer import MIN_VOCABULARY, parse_train
from wikillm.core.errors import ConfigError, DataError
from wikillm.data.tokenizer import download, find
from wikillm.data.tokenizer.find import choose_tokenizer
from wikillm.data.tokenizer.tokenizer import copy_tokenizer, load_tokenizer
from wikillm.data.tokenizer.train import SPECIAL_TOKENS, default_vocabulary, train_bpe

TEXT = "北京是中国的首都。The capital, 1984!\n\n  naïve"


def test_text_comes_back_and_special_tokens_are_only_text(tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    literal = "a<|endoftext|>b<|im_start|>"
    ids = tokenizer.encode(literal)
    assert tokenizer.eos_id not in ids
    assert max(ids) < tokenizer.length - 3  # no special token at all
    assert tokenizer.decode(ids) == literal
    assert tokenizer.encode_batch([TEXT, literal]) == [tokenizer.encode(TEXT), ids]
    assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"


def test_training_is_of_qwen2s_kind_and_has_the_size_asked_for(texts):
    tokenizer = train_bpe(texts(300), 500)
    assert tokenizer.get_vocab_size() == 500
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [497, 498, 499]
    assert len(tokenizer.encode("1234").ids) == 4  # digits one by one
    assert tokenizer.encode("cafe\u0301").ids == tokenizer.encode("caf\u00e9").ids  # NFC
    assert tokenizer.encode("\U0001f600").ids  # any character, by its bytes


def test_training_does_not_depend_on_threads_or_process(tmp_path, texts):
    corpus = tmp_path / "corpus.json"
    corpus.write_text(json.dumps(texts(500)))
    program = (
        "import json, sys; from pathlib import Path; from wikillm.data.tokenizer.train import *;"
        "write_tokenizer(train_bpe(json.load(open(sys.argv[1])), 700), Path(sys.argv[2]))"
    )
    for threads in ("1", "4"):
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", program, corpus, tmp_path / threads]
        subprocess.run(command, env=env, check=True)
    one, four = ((tmp_path / threads / "tokenizer.json").read_bytes() for threads in ("1", "4"))
    assert one == four
    files = {path.name for path in (tmp_path / "1").iterdir()}
    assert files == {"tokenizer.json", "tokenizer_config.json"}


def test_plain_transformers_opens_what_a_store_keeps(tmp_path, tokenizer_dir):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(tokenizer_dir / "tokenizer.json", folder)
    copy_tokenizer(folder, tmp_path / "copy")
    for place in (tokenizer_dir, tmp_path / "copy"):
        auto = transformers.AutoTokenizer.from_pretrained(place)
        ours = load_tokenizer(place)
        assert auto(TEXT)["input_ids"] == ours.encode(TEXT)
        found = (auto.eos_token_id, auto.pad_token_id, len(auto))
        assert found == (ours.eos_id, ours.eos_id, ours.length)


def test_a_copied_tokenizer_has_equal_bytes_and_no_auto_map(tmp_path, tokenizer_dir):
    source = tmp_path / "source"
    copy = tmp_path / "copy"
    shutil.copytree(tokenizer_dir, source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": "evil.Evil"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    copy_tokenizer(source, copy)
    assert "auto_map" not in (copy / "tokenizer_config.json").read_text()
    assert (copy / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_truncation_and_padding_in_a_tokenizer_json_are_not_applied(tmp_path, tokenizer_dir):
    backend = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    shutil.copytree(tokenizer_dir, tmp_path / "t")
    backend.save(str(tmp_path / "t" / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "t").encode(TEXT) == load_tokenizer(tokenizer_dir).encode(TEXT)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{}", "damaged"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", "damaged"),
        ("tokenizer_config.json", '{"eos_token": "<|gone|>"}', "no end-of-text"),
        ("tokenizer_config.json", "{", "damaged"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, tokenizer_dir, file, content, message):
    shutil.copytree(tokenizer_dir, tmp_path / "t")
    (tmp_path / "t" / file).write_text(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path / "t")


# --- the search


@pytest.fixture
def qwen2(tokenizer_dir, settings, monkeypatch):
    """Any tokenizer passes for Qwen2's; `settings` isolates the working directory and caches."""
    monkeypatch.setattr(find, "_is_qwen2", lambda tokenizer: True)

    def put(folder: str | Path) -> Path:
        shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)
        return Path(folder)

    return put


def test_the_search_order_is_the_documented_one(qwen2, tmp_path, monkeypatch):
    caches = tmp_path / "caches"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE")
    hf = caches / "HF_HOME" / "hub" / "models--Qwen--Qwen2-0.5B" / "snapshots" / "abc"
    modelscope = caches / "MODELSCOPE_CACHE" / "hub" / "Qwen" / "Qwen2-0___5B"
    places = [  # from the last to the first
        (caches / "XDG_CACHE_HOME" / "wikillm" / "qwen2-tokenizer", "WikiLLM cache"),
        (modelscope, "ModelScope cache"),
        (hf, "Hugging Face cache"),
        ("data", "./data"),
        ("data/qwen2-tokenizer", "./data/qwen2-tokenizer"),
        ("qwen2-tokenizer", "./qwen2-tokenizer"),
    ]
    for place, origin in places:
        qwen2(place)
        for setting in ("qwen2", "auto"):
            choice = choose_tokenizer(setting, 1000)
            assert (choice.name, choice.folder) == ("qwen2", Path(place))
            assert choice.origin.startswith(origin)
    monkeypatch.setenv("WIKILLM_TOKENIZER", str(qwen2(tmp_path / "mine")))
    assert choose_tokenizer("qwen2", 1000).folder == tmp_path / "mine"


def test_auto_trains_when_nothing_is_found_and_a_name_never_falls_back(settings):
    choice = choose_tokenizer("auto", 1000)
    assert (choice.name, choice.vocabulary, choice.folder) == ("train:8000", 8000, None)
    assert "neither found here nor downloaded" in choice.origin
    with pytest.raises(DataError, match="Qwen2 tokenizer was not found") as caught:
        choose_tokenizer("qwen2", 1000)
    assert "modelscope download" in caught.value.fix
    with pytest.raises(DataError, match="neither auto, qwen2") as caught:
        choose_tokenizer("qwen", 1000)
    assert caught.value.fix == "data.tokenizer=qwen2"


def test_another_tokenizer_in_qwen2s_place_is_an_error_even_for_auto(tokenizer_dir, settings):
    shutil.copytree(tokenizer_dir, "qwen2-tokenizer")
    with pytest.raises(DataError, match="not Qwen2's"):
        choose_tokenizer("auto", 1000)
    assert choose_tokenizer("qwen2-tokenizer", 1000).folder == Path("qwen2-tokenizer")


def test_the_size_of_a_trained_tokenizer_is_parsed_or_chosen_by_the_corpus():
    assert parse_train("train:8_000") == 8000
    assert 256 + len(SPECIAL_TOKENS) == MIN_VOCABULARY
    for wrong in ("train:", "train:abc", "train:100", "train:-5", "train:1e4", "train:１０００"):
        with pytest.raises(ConfigError, match="size of the vocabulary"):
            parse_train(wrong)
    assert [default_vocabulary(size) for size in (10**6, 10**8, 10**10)] == [8000, 16_000, 32_000]


# --- downloads


@pytest.fixture
def server(tokenizer_dir):
    """A server on loopback and the paths it was asked for; /silent/ is never answered."""

    class Site(Handler):
        def do_GET(self):
            self.state.asked.append(self.path)
            if self.path.startswith("/silent/"):
                time.sleep(2)
            elif self.path.startswith("/good/"):
                self.send(200, (tokenizer_dir / self.path.rsplit("/", 1)[1]).read_bytes())
            else:
                self.send(200, b"<html>please log in")

    with serving(Site, SimpleNamespace(asked=[])) as state:
        yield state.url, state.asked


def test_download_sources_that_failed_are_not_tried_again(
    server, tmp_path, monkeypatch, tokenizer_dir
):
    url, asked = server
    for switch in ("WIKILLM_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setattr(download, "LOOKUP_SECONDS", 0.3)
    monkeypatch.setattr(download, "_failed", set())
    sources = {name: f"{url}/{name}/{{file}}" for name in ("silent", "login")}
    monkeypatch.setattr(download, "_sources", lambda: sources)
    with pytest.raises(download.DownloadFailed, match="silent: no answer"):
        download.download_qwen2(tmp_path / "t")
    before = len(asked)
    monkeypatch.setattr(download, "LOOKUP_SECONDS", 5.0)
    sources["good"] = f"{url}/good/{{file}}"
    assert download.download_qwen2(tmp_path / "t").startswith("good")
    assert all(path.startswith("/good/") for path in asked[before:])
    assert load_tokenizer(tmp_path / "t").sha256 == load_tokenizer(tokenizer_dir).sha256


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "WIKILLM_OFFLINE"])
def test_offline_variables_forbid_downloads(server, tmp_path, monkeypatch, switch):
    url, asked = server
    monkeypatch.setenv(switch, "1")
    monkeypatch.setattr(download, "_sources", lambda: {"good": f"{url}/good/{{file}}"})
    with pytest.raises(download.DownloadFailed, match="switched off"):
        download.download_qwen2(tmp_path / "t")
    assert asked == []
