"""A drop-list made ahead gives the same store, streamed too, and is refused for other sources."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from harness.file_digests import digests

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError, DataError
from wikillm.data.filters.drop_list import read_drop_list
from wikillm.data.prepare.parts import Part, build_part
from wikillm.data.prepare.prepare import plan_store, prepare_store
from wikillm.data.read.corpus import StoredCorpus
from wikillm.data.read.open import stream_corpus

T = 16
COMMON = {"shard_bytes": 20_000, "val_fraction": 0.2}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """300 documents; every fifth duplicates an earlier one, every tenth with a word added."""
    rng = random.Random(3)
    texts: list[str] = []
    for at in range(300):
        text = "".join(chr(0x4E00 + rng.randrange(2500)) for _ in range(250))
        if at % 5 == 4:
            text = rng.choice(texts) + ("。" if at % 2 else "天地玄黄")
        texts.append(text)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *texts[:7]]))
    return path


@pytest.fixture
def made(tmp_path: Path, source: Path, settings) -> Path:
    """The list of `source`, made by the command; nothing else of the first pass is left."""
    path = tmp_path / "lists" / "drops.list"
    store = tmp_path / "made" / "store"
    values = {
        **COMMON,
        "path": source,
        "tokenizer": settings(source).tokenizer,
        "workers": 1,
        "dedup": "minhash",
        "store": store,
    }
    words = [f"data.{name}={value}" for name, value in values.items()]
    assert main(["prepare", *words, "--drop-list-only", str(path)]) == 0
    assert not store.exists()
    shutil.rmtree(store.parent)
    return path


def test_streamed_with_a_drop_list_is_prepared_bit_for_bit(
    tmp_path, source, made, settings, capsys
):
    finding = prepare_store(
        settings(source, dedup="minhash", store=str(tmp_path / "one/store"), **COMMON)
    )
    drops, _ = read_drop_list(made)
    assert drops.exact == 6 and drops.near > 20
    assert (finding.dir / "drops.bin").read_bytes() == drops.entries()

    cfg = settings(
        source, drop_list=str(made), store=str(tmp_path / "two/store"), window_shards=2, **COMMON
    )
    capsys.readouterr()
    streamed = stream_corpus(
        cfg.model_copy(update={"streaming": "on"}), is_main=True, is_local_main=True
    )
    try:
        order, whole = streamed.order(T, 7), StoredCorpus(finding, 2).order(T, 7)
        count = whole.blocks_of_first_epoch
        order.wait_for(count + 5)
        assert order.target_ranges(range(count + 5)) == whole.target_ranges(range(count + 5))
    finally:
        streamed.close()
    assert digests(streamed.dir) == digests(finding.dir)  # the fingerprint too
    assert not list((tmp_path / "two").glob(".dedup-*")), "the first pass ran again"
    assert "exact and" in capsys.readouterr().out

    part = settings(
        source, drop_list=str(made), dedup="minhash", store=str(tmp_path / "three/store"), **COMMON
    )
    build_part(plan_store(part), Part.parse("0/2"))  # another machine, and then the last one
    assert digests(prepare_store(part).dir) == digests(finding.dir)


def test_a_drop_list_of_something_else_is_refused(tmp_path, source, made, settings):
    def refusal(path: Path = source, **values: object) -> str:
        with pytest.raises(DataError) as caught:
            plan_store(settings(path, **{**COMMON, "drop_list": str(made), **values}))
        return str(caught.value)

    other = tmp_path / "b.jsonl"
    other.write_bytes(source.read_bytes() + b'{"text": "one more"}\n')
    assert "data.path: the list was made with" in refusal(other)
    assert "data.quality" in refusal(quality="basic")
    assert "data.max_text_bytes" in refusal(max_text_bytes=10_000)
    assert "data.dedup" in refusal(dedup="exact")
    assert "0.75" in refusal(dedup="minhash", dedup_similarity=0.75)
    other_shards = settings(source, drop_list=str(made), shard_bytes=30_000)
    assert plan_store(other_shards).drop_list is not None  # their size decides nothing

    cut = tmp_path / "cut.list"
    cut.write_bytes(made.read_bytes()[:-5])
    assert "cut off" in refusal(drop_list=str(cut))
    cut.write_bytes(b"\x00\x01")
    assert "not a drop-list" in refusal(drop_list=str(cut))
    assert "No such file" in refusal(drop_list=str(tmp_path / "none"))


def test_streaming_without_a_list_reports_that_duplicates_come_first(
    source, settings, tmp_path, capsys
):
    cfg = settings(source, dedup="exact", store=str(tmp_path / "x/store"), streaming="on", **COMMON)
    with pytest.raises(ConfigError, match="data.dedup needs a drop-list"):
        stream_corpus(cfg, is_main=True, is_local_main=True)
    stream_corpus(
        cfg.model_copy(update={"streaming": "auto"}), is_main=True, is_local_main=True
    ).close()
    assert (
        "reads all sources before training starts; to do that beforehand" in capsys.readouterr().out
    )


def test_a_list_is_made_only_with_deduplication(source, tmp_path, capsys, settings):
    settings(source)
    words = ["prepare", f"data.path={source}", "--drop-list-only", str(tmp_path / "l")]
    assert main(words) == 2
    assert "data.dedup=exact" in capsys.readouterr().err
    assert main([*words, "data.dedup=exact", "--shards", "0/2"]) == 2
    assert not (tmp_path / "l").exists()
