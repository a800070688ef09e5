"""Small corpora in every readable format, and settings that prepare them at once."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow
import pytest
from pyarrow import parquet

from wikillm.config.schema_data import DataSection
from wikillm.data.tokenizer import encoders
from wikillm.data.tokenizer.tokenizer import load_tokenizer
from wikillm.data.tokenizer.train import train_bpe, write_tokenizer

WORDS = [
    *["数据", "模型", "训练", "语言", "北京", "是", "中国", "的", "首都", "，。", "1984", "naïve"],
    *("café\n", "<|endoftext|>"),
    *["the", "token", "store", "keeps", "every", "document", "exactly", "once"],
]


def make_texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Different texts, Chinese and English, some with a literal special token."""
    rng = random.Random(seed)

    def word() -> str:
        if rng.random() < 0.3:
            return "".join(chr(0x4E00 + rng.randrange(200)) for _ in range(rng.randint(1, 4)))
        return rng.choice(WORDS)

    return [
        f"第{seed}-{i}篇 " + " ".join(word() for _ in range(rng.randint(5, words))).strip()
        for i in range(count)
    ]


@pytest.fixture
def texts() -> Callable[..., list[str]]:
    return make_texts


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 400 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_bpe(make_texts(200, seed=9), 400), folder)
    return folder


@pytest.fixture
def settings(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., DataSection]:
    """`settings(path, key=value, ...)`: one worker, a small tokenizer, a new working directory."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("WIKILLM_OFFLINE", "1")
    monkeypatch.delenv("WIKILLM_TOKENIZER", raising=False)
    hugging_face = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    for name in (*hugging_face, "MODELSCOPE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "caches" / name))

    def make(*paths: Path | str, **values: object) -> DataSection:
        defaults: dict[str, object] = {
            "tokenizer": str(tokenizer_dir),
            "workers": 1,
            "min_val_tokens": 1,
        }
        return DataSection(path=tuple(map(str, paths)), **{**defaults, **values})

    return make


@pytest.fixture
def wrong_encoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`wrong_encoder(mark)`: fastokens is wrong for texts with `mark`; every text is compared."""

    class Wrong:
        def __init__(self, folder: Path, mark: str) -> None:
            self._truth = load_tokenizer(folder)
            self._mark = mark

        def encode_batch(self, texts: list[str]) -> encoders.Encoded:
            pairs = zip(self._truth.encode_batch(texts), texts, strict=True)
            return encoders.Encoded.of([ids + [0] * (self._mark in text) for ids, text in pairs])

    def put(mark: str) -> None:
        monkeypatch.setitem(encoders.OPENERS, "fastokens", lambda folder: Wrong(folder, mark))
        monkeypatch.setattr(encoders, "ONE_IN", 1)

    return put


SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18" + (8).to_bytes(4, "little") + b"metadata"


def zstandard(content: bytes) -> bytes:
    """One frame, as `zstd` writes it."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def csv_of(texts: list[str], dialect: str = "excel") -> str:
    """Rows with columns around the text; texts hold line breaks, commas and quotes."""
    out = io.StringIO(newline="")
    rows = csv.writer(out, dialect)
    rows.writerow(["id", "text", "note"])
    rows.writerows([i, text, 'said "so", twice\n'] for i, text in enumerate(texts))
    return out.getvalue()


def parquet_of(texts: list[str], as_dictionary: bool = False) -> bytes:
    """Row groups of 17 rows."""
    column = pyarrow.array(texts)
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table(
        {
            "id": list(range(len(texts))),
            "text": column.dictionary_encode() if as_dictionary else column,
        }
    )
    parquet.write_table(table, sink, row_group_size=17)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def write_source() -> Callable[[Path, str, list[str]], Path]:
    """`write_source(folder, kind, texts)` writes the documents in one of the formats `KINDS`."""

    def write(folder: Path, kind: str, texts: list[str]) -> Path:
        records = [{"title": "t", "text": text} for text in texts]
        lines = [json.dumps(record, ensure_ascii=i % 2 == 0) for i, record in enumerate(records)]
        jsonl = "".join(line + "\n" for line in lines).encode()
        half = jsonl.find(b"\n", len(jsonl) // 2) + 1
        one = jsonl[:half]
        two = jsonl[half:]
        array = "[\n" + ",\n".join(lines) + "\n]\n"
        made = {
            "plain.jsonl": lambda: jsonl,
            "bom-crlf.jsonl": lambda: b"\xef\xbb\xbf" + jsonl.replace(b"\n", b"\r\n\r\n"),
            "array.json": lambda: array.encode(),
            "one-line-array.json": lambda: json.dumps(records).encode(),
            "wrong-name.txt.gz": lambda: gzip.compress(jsonl),
            "two-members.jsonl.gz": lambda: gzip.compress(one) + gzip.compress(two),
            "plain.jsonl.bz2": lambda: bz2.compress(jsonl),
            "multi-stream.jsonl.bz2": lambda: b"".join(map(bz2.compress, (one, two, b""))),
            "array.json.bz2": lambda: bz2.compress(array.encode()),
            "two-streams.jsonl.xz": lambda: lzma.compress(one) + bytes(4) + lzma.compress(two),
            "frames.jsonl.zst": lambda: zstandard(one) + SKIPPABLE_FRAME + zstandard(two),
            "table.csv": lambda: csv_of(texts).encode("utf-8-sig"),
            "table.tsv.zst": lambda: zstandard(csv_of(texts, "excel-tab").encode()),
            "rows.parquet": lambda: parquet_of(texts),
            "dictionary.parquet": lambda: parquet_of(texts, as_dictionary=True),
        }
        path = folder / kind
        path.write_bytes(made[kind]())
        return path

    return write


@pytest.fixture
def source(tmp_path: Path, write_source: Callable[..., Path]) -> Callable[[int], Path]:
    """`source(count)`: that many documents as plain.jsonl."""
    return lambda count: write_source(tmp_path, "plain.jsonl", make_texts(count))


@pytest.fixture
def mediawiki() -> Callable[..., str]:
    """`mediawiki([(title, ns, wikitext), ...])`: an export; a title "A -> B" is a redirect."""

    def make(pages: list[tuple[str, int, str]]) -> str:
        body = ""
        for title, ns, text in pages:
            name, _, target = title.partition(" -> ")
            redirect = f'<redirect title="{escape(target)}" />' if target else ""
            body += (
                f"  <page>\n    <title>{escape(name)}</title>\n    <ns>{ns}</ns>\n"
                f"    {redirect}\n    <revision>\n"
                "      <model>wikitext</model>\n"
                f'      <text xml:space="preserve">{escape(text)}</text>\n'
                "    </revision>\n  </page>\n"
            )
        return (
            '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" '
            'version="0.11" xml:lang="zh">\n'
            f"  <siteinfo><sitename>Wikipedia</sitename></siteinfo>\n{body}</mediawiki>\n"
        )

    return make
