"""Data sets of Hugging Face and ModelScope, by their own clients against a loopback server.

The clients read their addresses from the environment at import, so they run in a child process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.dataset_server import COMMIT, serve_datasets

from wikillm.core.errors import ConfigError
from wikillm.data.fetch import datasets
from wikillm.data.fetch.cache import Cache
from wikillm.data.fetch.datasets import parse, splits_of
from wikillm.data.prepare.prepare import prepare_store

PINNED = f"hf://org/name@{COMMIT}:train"
PROGRAM = """
import json, sys
from wikillm.config.schema_data import DataSection
from wikillm.core.errors import WikiLLMError
from wikillm.data.prepare.prepare import prepare_store
for cfg in json.loads(sys.argv[1]):
    try:
        store = prepare_store(DataSection(**cfg))
        sources = [[s.url, s.version, s.sha256] for s in store.manifest.sources]
        kept = store.manifest.funnel.kept_records
        print("FOUND" + json.dumps([store.manifest.fingerprint, kept, sources]))
    except WikiLLMError as error:
        print("FOUND" + json.dumps(str(error)))
"""


def prepared(folder: Path, tokenizer: Path, paths: list[str], **environ: str) -> list:
    """What `prepare_store` gives for each of `paths`, one after the other, in a fresh process."""
    shared = {"tokenizer": str(tokenizer), "workers": 1, "min_val_tokens": 1}
    shared["cache"] = str(folder / "cache")
    sections = [{**shared, "path": [path]} for path in paths]
    variables = dict(os.environ)
    for name in os.environ:
        if "proxy" in name.lower() or name.endswith("_OFFLINE"):
            del variables[name]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(sections)],
        env={
            **variables,
            "PYTHONPATH": str(Path(__file__).parents[4]),
            "HF_HOME": str(folder / "hf"),
            "MODELSCOPE_CACHE": str(folder / "modelscope"),
            "MODELSCOPE_HOME": str(folder / "modelscope-home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **environ,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert len(found) == len(paths), done.stdout + done.stderr
    return found


@pytest.fixture
def files(tmp_path, texts, write_source) -> dict[str, bytes]:
    """Two Parquet files of train, JSON Lines of test, and what is no data."""
    every = texts(90)
    parts = [
        write_source(tmp_path, "rows.parquet", every[i : i + 30]).read_bytes() for i in (0, 30, 60)
    ]
    return {
        "README.md": b"---\nlicense: mit\n---\n# A data set\n",
        "data/train-00000-of-00002.parquet": parts[0],
        "data/train-00001-of-00002.parquet": parts[1],
        "data/test-00000-of-00001.parquet": parts[2],
    }


@pytest.fixture
def fingerprint(tmp_path, files, settings) -> str:
    """Of the two train files as local ones."""
    names = [name for name in files if "train" in name]
    for name in names:
        (tmp_path / Path(name).name).write_bytes(files[name])
    store = prepare_store(settings(*(tmp_path / Path(name).name for name in names)))
    return store.manifest.fingerprint


def test_hugging_face_pinned_resumed_and_offline(tmp_path, files, fingerprint, tokenizer_dir):
    with serve_datasets("org/name", files) as site:
        site.cut["data/train-00001-of-00002.parquet"] = 700
        first, pinned, test, no_split, no_repo = prepared(
            tmp_path,
            tokenizer_dir,
            ["hf://org/name", PINNED, "hf://org/name:test", "hf://org/name:tset", "hf://no/one"],
            HF_ENDPOINT=site.url,
        )
    assert first[0] == pinned[0] == fingerprint
    assert not site.cut  # a download was cut, and resumed
    names = [name for name in files if "train" in name]
    assert [source[:2] for source in first[2]] == [
        [f"hf://org/name/{name}", COMMIT] for name in names
    ]
    assert test[1] == 30
    assert "has no split tset" in no_split and "fix: hf://org/name:test" in no_split
    assert "does not exist" in no_repo and "HF_ENDPOINT=https://hf-mirror.com" in no_repo
    assert len([line for line in site.log if line.startswith("GET") and "train-00000" in line]) == 1

    gone, unknown = prepared(
        tmp_path, tokenizer_dir, ["hf://org/name", "hf://org/name:test2"], HF_ENDPOINT=site.url
    )
    assert gone == first, "what is here, at the revision of the last time"
    assert "cannot be reached" in unknown and "data.path=FOLDER" in unknown


def test_modelscope_and_offline(tmp_path, files, fingerprint, tokenizer_dir):
    with serve_datasets("org/name", files) as site:
        first, test, no_split, no_repo = prepared(
            tmp_path,
            tokenizer_dir,
            [
                *("modelscope://org/name", "modelscope://org/name@master:test"),
                *("modelscope://org/name:tset", "modelscope://no/one"),
            ],
            MODELSCOPE_ENDPOINT=site.url,
        )
    assert first[0] == fingerprint and [source[1] for source in first[2]] == ["master", "master"]
    assert test[1] == 30 and "has no split tset" in no_split
    assert "does not exist" in no_repo and "MODELSCOPE_ENDPOINT" in no_repo
    again = prepared(tmp_path, tokenizer_dir, ["modelscope://org/name"], HF_HUB_OFFLINE="1")
    assert again == [first]


@pytest.mark.parametrize(
    "text", ["hf://name", "hf://a/b/c/d", "modelscope://a/b/c", "hf://a/b@", "hf://a/b:"]
)
def test_invalid_addresses_of_data_sets_are_refused(text):
    with pytest.raises(ConfigError, match="not the address of a data set"):
        parse(text)


def test_addresses():
    found = parse("hf://org/name.1/20240101.zh@refs/convert/parquet:validation")
    assert (found.repo, found.config) == ("org/name.1", "20240101.zh")
    assert (found.revision, found.split) == ("refs/convert/parquet", "validation")
    assert parse("modelscope://a/b").split == "train"


def test_splits_by_their_names():
    train = "data/train/a.parquet"
    validation = "data/validation-0.jsonl.zst"
    others = ["README.md", "stats.json", "x/restrain.csv"]
    found = splits_of([train, validation, *others])
    assert found == {"train": [train], "validation": [validation]}
    assert splits_of(["b.jsonl", "a.txt", "LICENSE"]) == {"train": ["a.txt", "b.jsonl"]}
    assert splits_of(["LICENSE"]) == {}


def test_a_site_that_breaks_off_is_silent_not_a_bug(monkeypatch):
    """What the HTTP libraries raise is no subclass of ConnectionError or TimeoutError."""
    import datasets as library

    class ReadTimeout(Exception):
        pass

    def breaks(*_: object, **__: object) -> None:
        raise ReadTimeout("the read operation timed out")

    monkeypatch.setattr(library, "load_dataset_builder", breaks)
    with pytest.raises(datasets._NoAnswer, match="timed out"):
        datasets._hf_splits(parse("hf://org/name"), COMMIT)


def test_ranks_that_wait_for_a_silent_site_do_not_ask_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "is_offline", lambda: False)
    address = parse("hf://org/name")
    cache = Cache(str(tmp_path))
    asked = time.time()
    known = datasets.Listing(COMMIT, (("data/train.jsonl", ""),))
    calls: list[str] = []

    def answers(address: datasets.DatasetAddress) -> datasets.Listing:
        calls.append("answered")
        return known

    def is_silent(address: datasets.DatasetAddress) -> datasets.Listing:
        calls.append("silent")
        raise datasets._NoAnswer("no answer")

    assert datasets._listing(address, answers, cache, time.time() + 1) == (known, False)
    assert datasets._listing(address, is_silent, cache, time.time() + 1) == (known, True)
    # A rank that asked before the first one's answer takes it.
    assert datasets._listing(address, is_silent, cache, asked) == (known, True)
    assert calls == ["answered", "silent"]
