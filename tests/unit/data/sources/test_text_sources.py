"""Plain text, CSV and Parquet: borders that do not depend on the pieces, and damage that is told."""

from __future__ import annotations

import csv
import io
import lzma
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from wikillm.core.errors import DataError
from wikillm.data.filters.documents import TOO_LONG
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.sources import streams
from wikillm.data.sources.lines import split_blocks, split_whole
from wikillm.data.sources.locate import locate
from wikillm.data.sources.read import items_of, read_shards
from wikillm.data.sources.sniff import check_text_key, sniff
from wikillm.data.sources.tables import Columns, columns_of, parse_row, row_and_header, split_rows
from wikillm.data.text.clean import cleaner
from wikillm.data.types import Dropped

LIMIT = 1 << 24
FIELDS = st.text(st.sampled_from('ab,"\n \t;字'), max_size=8)


def chunked(content: bytes, size: int):
    return (content[i : i + size] for i in range(0, len(content), size))


def written(rows: list[list[str]], delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


def texts_of(path: Path, text_key: str = "text", wanted: str = "auto") -> list[str | Dropped]:
    source = sniff(path, wanted, text_key)
    check_text_key(source, LIMIT)
    clean = cleaner(source.format, text_key)
    return [
        Dropped(TOO_LONG, size) if payload is None else clean(payload, offset)
        for offset, payload, size in items_of(source, 0, LIMIT)
    ]


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=5), st.integers(1, 9), st.sampled_from(",\t;"))
def test_rows_come_out_whole_whatever_the_pieces_and_from_every_start(values, size, delimiter):
    header = ["first", "text"]
    content = written([header, *map(list, values)], delimiter)
    columns = columns_of(content.split(b"\n")[0])
    assert columns == Columns(("first", "text"), delimiter)
    items = list(split_rows(chunked(content, size), 0, LIMIT, columns))
    parsed = [parse_row(row_and_header(payload, items[0][1])) for _, payload, _ in items[1:]]
    assert parsed == [dict(zip(header, row, strict=True)) for row in values]
    for (offset, payload, length), following in zip(items, [*items, None][1:], strict=True):
        assert content[offset : offset + length] == payload
        rest = list(
            split_rows(chunked(content[offset + length :], size), offset + length, LIMIT, columns)
        )
        assert (rest[0] if rest else None) == following


@given(st.text(st.sampled_from("ab \n\r\t字"), max_size=40), st.integers(1, 9))
def test_blocks_stand_between_blank_lines_whatever_the_pieces(text, size):
    content = text.encode()
    items = list(split_blocks(chunked(content, size), 0, LIMIT))
    wanted, block = [], []
    for line in [*content.split(b"\n"), b""]:
        if line.strip():
            block.append(line)
        elif block:
            wanted.append(b"\n".join(block))
            block = []
    assert [payload for _, payload, _ in items] == wanted
    for (offset, payload, length), following in zip(items, [*items, None][1:], strict=True):
        assert content[offset : offset + length] == payload
        rest = list(split_blocks(chunked(content[offset + length :], size), offset + length, LIMIT))
        assert (rest[0] if rest else None) == following


@pytest.mark.parametrize("size", [3, 64, 1 << 20])
def test_a_record_above_the_limit_is_counted_and_not_held(size):
    rows = b'a,b\n1,"' + b'x""\n' * 100 + b'"\n2,c\n'
    assert [
        (payload, length)
        for _, payload, length in split_rows(chunked(rows, size), 0, 50, columns_of(b"a,b"))
    ] == [(b"a,b", 3), (None, 404), (b"2,c", 3)]
    blocks = b"one\n\n" + b"long\n" * 40 + b"\n\ntwo"
    found = list(split_blocks(chunked(blocks, size), 0, 50))
    assert found == [(0, b"one", 3), (5, None, 199), (207, b"two", 3)]
    assert list(split_whole(chunked(blocks, size), 0, 50)) == [(0, None, 210)]
    assert list(split_whole(chunked(blocks, size), 0, 500)) == [(0, blocks, 210)]
    assert list(split_whole(chunked(b"", size), 210, 500)) == []


def test_a_text_file_is_one_document_and_blocks_are_asked_for(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeff[第一章]\r\n甲\r\n\r\n乙\r\n".encode())
    assert texts_of(path) == ["[第一章]\n甲\n\n乙"]
    assert texts_of(path, wanted="blocks") == ["[第一章]\n甲", "乙"]
    with pytest.raises(DataError, match="longer than one document") as caught:
        check_text_key(sniff(path), 10)
    assert "data.format=blocks" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("x.txt", '{"text": "a"}\n', "jsonl"),
        ("x.csv", '[{"text": "a"}]', "json"),
        ("x.txt", "[1] a note\n", "text"),
        ("x.txt", "{\\rtf1 no JSON", "text"),
        ("x.txt", "<unk> the cat", "text"),
        ("x.tsv", "text\tb\nc\td\n", "csv"),
    ],
)
def test_content_goes_before_the_name(tmp_path, name, content, format):
    (tmp_path / name).write_text(content)
    assert sniff(tmp_path / name).format == format


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "no-name"])
def test_parquet_and_compression_are_known_under_any_name(tmp_path, texts, write_source, name):
    for kind, wanted in (
        ("rows.parquet", ("parquet", "none")),
        ("two-streams.jsonl.xz", ("jsonl", "xz")),
    ):
        (tmp_path / name).write_bytes(write_source(tmp_path, kind, texts(9)).read_bytes())
        source = sniff(tmp_path / name)
        assert (source.format, source.compression) == wanted


def test_rows_that_do_not_fit_are_bad_and_leave_the_others_whole(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'id,text\n1,a\n2\n3,b,c\n"4"x,d\n5,\xff\n6,\n7,"open')
    found = texts_of(path)
    assert [item if isinstance(item, str) else item.reason for item in found] == [
        "a", *["not a row of this table"] * 3, "not UTF-8", "empty", "not a row of this table",
    ]  # fmt: skip
    assert [item.is_bad for item in found if isinstance(item, Dropped)] == [
        True,
        True,
        True,
        True,
        False,
        True,
    ]


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    (tmp_path / "x.csv").write_text("id,content\n1,a\n")
    parquet.write_table(pyarrow.table({"id": [1], "content": ["a"]}), tmp_path / "x.parquet")
    for name in ("x.csv", "x.parquet"):
        with pytest.raises(DataError, match="'text'") as caught:
            texts_of(tmp_path / name)
        assert "id" in caught.value.got
        assert caught.value.fix == "data.text_key=content"
        assert texts_of(tmp_path / name, "content") == ["a"]
    with pytest.raises(DataError, match="no text under 'id'"):
        texts_of(tmp_path / "x.parquet", "id")


def test_nulls_and_long_texts_of_parquet_are_counted(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(
        pyarrow.table({"text": ["a", None, "b" * 99, "", "c"]}), path, row_group_size=2
    )
    items = list(items_of(sniff(path), 0, 50))
    assert [payload is None for _, payload, _ in items] == [False, False, True, False, False]
    for number, (offset, _, size) in enumerate(items):
        assert list(items_of(sniff(path), offset + size, 50)) == items[number + 1 :]


@pytest.mark.parametrize("where", ["end", "middle", "footer"])
def test_a_damaged_parquet_file_is_refused(tmp_path, texts, write_source, settings, where):
    path = write_source(tmp_path, "rows.parquet", texts(400))
    content = bytearray(path.read_bytes())
    if where == "end":
        del content[-100:]
    elif where == "footer":
        content[-60:-8] = bytes(52)
    else:
        content[400:4000] = bytes(3600)
    path.write_bytes(content)
    with pytest.raises(DataError, match="Parquet file is damaged"):
        prepare_store(settings(path))


def test_a_folder_of_text_and_a_folder_with_notes(tmp_path, capsys):
    for name in ("b.txt", "a.txt.xz"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in locate([str(tmp_path)])] == ["a.txt.xz", "b.txt"]
    (tmp_path / "rows.parquet").write_text("x")
    assert [path.name for path in locate([str(tmp_path)])] == ["rows.parquet"]
    assert "2 .txt files" in capsys.readouterr().out


def test_a_decompression_bomb_is_refused_before_it_is_through(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "BOMB_BYTES", 1 << 20)
    path = tmp_path / "x.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "a"}' + b"\n" * (64 << 20)))
    with pytest.raises(DataError, match="expands more than text can") as caught:
        list(items_of(sniff(path), 0, LIMIT))
    assert "64.0 MiB" not in caught.value.got


def test_an_xz_header_that_asks_for_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_XZ_MEMORY", 1 << 20)
    path = tmp_path / "x.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "a"}\n', preset=9))
    with pytest.raises(DataError, match="Memory usage limit"):
        sniff(path)


def test_shards_of_all_new_formats_are_the_same_from_every_cursor(tmp_path, texts, write_source):
    kinds = ("table.csv", "rows.parquet", "frames.jsonl.zst", "dictionary.parquet")
    sources = [
        sniff(write_source(tmp_path, kind, texts(60, seed=i))) for i, kind in enumerate(kinds)
    ]
    (tmp_path / "blocks").write_text("\n\n".join(texts(60, seed=8)).replace("\n\n\n", "\n"))
    sources.append(sniff(tmp_path / "blocks", "blocks"))
    whole = list(read_shards(sources, 4000, LIMIT))
    assert len(whole) > 5
    for raw in whole:
        assert list(read_shards(sources, 4000, LIMIT, raw.start, raw.number)) == whole[raw.number :]
