"""A store of several shards that the tests of inspect/ only read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wikillm.config.schema_data import DataSection
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.store.store import Store, TokenStream

HOSTILE = "<script>alert(1)</script> & \"引号\" '北京' </span><img src=http://x.example/y.png>"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Store:
    """120 texts, 9 of them twice, one that tries to become markup, and two empty ones."""
    folder = tmp_path_factory.mktemp("inspected")
    texts = [HOSTILE]
    texts += [f"第{i}篇 " + f"数据 token{i % 7} naïve\n" * (i % 13 + 1) + "完" for i in range(120)]
    texts += [*texts[1:10], "", ""]
    source = folder / "x.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {"val_fraction": 0.2, "shard_bytes": 4000, "min_val_tokens": 1, "workers": 1}
    cfg = DataSection(
        path=(str(source),), store=str(folder / "s"), tokenizer=str(tokenizer_dir), **settings
    )
    return prepare_store(cfg)


@pytest.fixture(scope="session")
def documents():
    """`documents(stream)`: the ids of each document, EOS included."""

    def read(stream: TokenStream) -> list[list[int]]:
        ends = [0, *stream.document_ends().tolist()]
        return [stream.read(a, b).tolist() for a, b in zip(ends, ends[1:], strict=False)]

    return read
