"""The borders of shards found ahead are those of reading; each shard can be read from its own."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wikillm.data.sources.read import Cursor, ShardReader
from wikillm.data.sources.shard_starts import find_cuts
from wikillm.data.sources.sniff import sniff
from wikillm.data.types import SourceFile

BLANK = [b"", b" ", b"\r", b"\t  "]
LINES = st.lists(
    st.sampled_from([*BLANK, b"x" * 3, b"  y" * 5, b"z" * 40, b"w" * 200, b"u" * 700 + b"  "]),
    max_size=60,
)


def by_reading(reader: ShardReader) -> tuple[Cursor, ...]:
    raws = list(reader.read())
    return (*(raw.start for raw in raws), raws[-1].end) if raws else ()


@given(
    files=st.lists(st.tuples(LINES, st.booleans()), min_size=1, max_size=3),
    range_bytes=st.integers(50, 900),
)
@example(files=[([b"abc", *[b""] * 300, b"abc"], False)], range_bytes=60)
def test_cuts_of_lines_equal_those_of_reading(tmp_path_factory, files, range_bytes):
    folder = tmp_path_factory.mktemp("lines")
    sources = []
    for number, (lines, ends) in enumerate(files):
        path = folder / f"{number}.jsonl"
        path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))
        sources.append(SourceFile(str(path), path.stat().st_size, "jsonl", "none"))
    reader = ShardReader(sources, range_bytes, 1 << 16)
    assert find_cuts(reader) == by_reading(reader)


def test_a_large_file_is_not_read_through(tmp_path):
    path = tmp_path / "x.jsonl"
    rng = random.Random(1)
    sizes = [rng.randint(10, 5000) for _ in range(4000)]
    path.write_bytes(b"".join(b'{"text": "' + b"a" * size + b'"}\n' for size in sizes))
    source = sniff(path)
    read: list[int] = []
    reader = ShardReader([source], 1 << 20, 1 << 24)
    assert find_cuts(reader, read.append) == by_reading(reader)
    assert read == []


@pytest.mark.parametrize("blank", [1 << 16, 1 << 18])
def test_long_runs_of_blank_lines_are_read_through(tmp_path, blank):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + b"\n" * blank + b'{"text": "b"}\n' * 3 + b" \n" * blank)
    source = SourceFile(str(path), path.stat().st_size, "jsonl", "none")
    reader = ShardReader([source], 1000, 1 << 24)
    assert find_cuts(reader) == by_reading(reader)


@pytest.mark.parametrize(
    "kinds",
    [
        ("plain.jsonl", "array.json", "plain.jsonl"),
        ("two-members.jsonl.gz", "table.csv", "rows.parquet"),
        ("bom-crlf.jsonl", "frames.jsonl.zst"),
    ],
)
def test_a_shard_of_any_format_is_read_from_its_cut(tmp_path, texts, write_source, kinds):
    sources = []
    for number, kind in enumerate(kinds):
        (tmp_path / str(number)).mkdir()
        sources.append(sniff(write_source(tmp_path / str(number), kind, texts(80, seed=number))))
    reader = ShardReader(sources, 3000, 1 << 20)
    raws = list(reader.read())
    cuts = find_cuts(reader)
    assert len(raws) > 10
    assert cuts == by_reading(reader)
    for raw in raws:
        alone = next(reader.read(cuts[raw.number], raw.number))
        assert alone == raw


def test_sources_without_records_have_no_shards(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n\n")
    source = SourceFile(str(path), 2, "jsonl", "none")
    assert find_cuts(ShardReader([source], 1000, 1 << 20)) == ()
    assert find_cuts(ShardReader([], 1000, 1 << 20)) == ()
