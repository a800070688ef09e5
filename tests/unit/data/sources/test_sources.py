"""Finding, recognising, decompressing and cutting sources."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.core.errors import DataError
from wikillm.data.filters.documents import CleanJob
from wikillm.data.sources.json_array import split_array
from wikillm.data.sources.lines import split_lines
from wikillm.data.sources.locate import WIKI_ZH_CANDIDATES, locate
from wikillm.data.sources.mediawiki import split_pages
from wikillm.data.sources.read import Cursor, items_of, read_shards
from wikillm.data.sources.sniff import check_text_key, sniff
from wikillm.data.sources.streams import file_and_line, pieces
from wikillm.data.text.clean import cleaner
from wikillm.data.types import SourceFile

LIMIT = 1 << 24
KINDS = (
    "plain.jsonl", "bom-crlf.jsonl", "array.json", "one-line-array.json", "wrong-name.txt.gz", "two-members.jsonl.gz",
    "plain.jsonl.bz2", "multi-stream.jsonl.bz2", "array.json.bz2", "two-streams.jsonl.xz", "frames.jsonl.zst",
    "table.csv", "table.tsv.zst", "rows.parquet", "dictionary.parquet",
)  # fmt: skip


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def chunked(content: bytes, size: int):
    return (content[i : i + size] for i in range(0, len(content), size))


# --- locate


def test_files_folders_and_globs_in_a_fixed_order_each_once(tmp_path):
    names = [
        "b 北京.jsonl",
        "-dash.jsonl",
        "a.json",
        "deep/c.xml-p1p42.bz2",
        "notes.md",
        ".hidden.jsonl",
        "[1].jsonl",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = [str(path.relative_to(tmp_path)) for path in locate([str(tmp_path)])]
    assert found == ["-dash.jsonl", "[1].jsonl", "a.json", "b 北京.jsonl", "deep/c.xml-p1p42.bz2"]
    again = locate(
        [str(tmp_path / "a.json"), str(tmp_path / "*.json*"), str(tmp_path / "nothing-*.json")]
    )
    assert again[0].name == "a.json"
    assert len(again) == 4
    assert locate([str(tmp_path / "[1].jsonl")])[0].name == "[1].jsonl"


def test_a_missing_path_names_the_nearest_folder_and_a_similar_name(tmp_path):
    (tmp_path / "zhwiki.jsonl").write_text("x")
    with pytest.raises(DataError, match="does not exist") as caught:
        locate([str(tmp_path / "zhwik.jsonl")])
    assert str(tmp_path) in caught.value.got
    assert caught.value.fix == f"data.path={tmp_path / 'zhwiki.jsonl'}"
    with pytest.raises(DataError) as caught:
        locate([str(tmp_path / "no" / "such" / "file.jsonl")])
    assert f"exists is {tmp_path}" in caught.value.got


def test_what_is_no_readable_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "readme.md").write_text("x")
    for name, message in (
        ("pipe.jsonl", "FIFO"),
        ("empty.jsonl", "empty"),
        ("loop.jsonl", "cannot be read"),
        ("folder", "no file"),
    ):
        with pytest.raises(DataError, match=message):
            locate([str(tmp_path / name)])
    with pytest.raises(DataError, match="a device"):
        locate(["/dev/null"])
    with pytest.raises(DataError, match="No file matches"):
        locate([str(tmp_path / "*.xml")])


def test_without_a_path_chinese_wikipedia_is_looked_for_and_only_one_file_of_it_taken(tmp_path):
    with pytest.raises(DataError, match="no Chinese Wikipedia") as caught:
        locate([], root=tmp_path)
    assert "data.path=FILE" in caught.value.fix
    (tmp_path / "WIKI_CN").mkdir()
    for name in (
        "wikipedia-zh-cn-20230101.json",
        "wikipedia-zh-cn-20240820.json",
        "zhwiki-20240101.xml.bz2",
    ):
        (tmp_path / "WIKI_CN" / name).write_text("x")
    for paths in ([], WIKI_ZH_CANDIDATES):
        assert [path.name for path in locate(paths, root=tmp_path)] == [
            "wikipedia-zh-cn-20240820.json"
        ]


def test_the_preset_names_the_same_candidates():
    import yaml

    import wikillm

    preset = Path(wikillm.__file__).parent / "presets" / "data" / "wiki-zh.yaml"
    assert tuple(yaml.safe_load(preset.read_text())["data"]["path"]) == WIKI_ZH_CANDIDATES


# --- splitting

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.lists(JSON_VALUES, max_size=6), st.integers(1, 7), st.booleans(), st.sampled_from([None, 1])
)
def test_array_items_come_out_whole_whatever_the_pieces(values, size, ascii_only, indent):
    content = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()
    items = list(split_array(chunked(content, size), 0, LIMIT, "x"))
    assert [json.loads(payload) for _, payload, _ in items] == values
    for (offset, payload, length), following in zip(items, [*items, None][1:], strict=True):
        assert content[offset : offset + length] == payload
        rest = list(
            split_array(chunked(content[offset + length :], size), offset + length, LIMIT, "x")
        )
        assert (rest[0] if rest else None) == following  # may be started after any item


@given(
    st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=8),
    st.integers(1, 9),
    st.integers(3, 25),
)
def test_lines_come_out_whole_whatever_the_pieces(lines, size, limit):
    content = b"\n".join(lines)
    items = list(split_lines(chunked(content, size), 0, limit))
    expected = [line for line in lines if not line.isspace() and line or len(line) > limit]
    assert [payload if payload is not None else length for _, payload, length in items] == [
        line if len(line) <= limit else len(line) for line in expected
    ]
    assert all(content[offset : offset + length] in lines for offset, _, length in items)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5),
    st.integers(1, 30),
)
def test_pages_come_out_whole_whatever_the_pieces(texts, size):
    pages = [b"<page><x>" + text.replace("<", "&lt;").encode() + b"</x></page>" for text in texts]
    content = b"<mediawiki>\n<siteinfo/>" + b"\n ".join(pages) + b"</mediawiki>"
    items = list(split_pages(chunked(content, size), 0, LIMIT, "x"))
    assert [payload for _, payload, _ in items] == pages


@pytest.mark.parametrize("size", [3, 64, 1 << 20])
def test_a_record_above_the_limit_is_counted_and_never_held(size):
    big = "大" * 3000
    lines = ['{"text": "a"}', json.dumps({"text": big}), '{"text": "b"}']
    array = ("[" + ",".join(lines) + "]").encode()
    pages = (
        b"<mediawiki>"
        + b"".join(f"<page>{line}</page>".encode() for line in lines)
        + b"</mediawiki>"
    )
    for items in (
        split_lines(chunked("\n".join(lines).encode(), size), 0, 100),
        split_array(chunked(array, size), 0, 100, "x"),
        split_pages(chunked(pages, size), 0, 100, "x"),
    ):
        found = list(items)
        assert [payload is None for _, payload, _ in found] == [False, True, False]
        assert found[1][2] >= len(lines[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"text": "a"}, {"te', "cut off"),
        (b'[{"text": "a"}] {"text": "b"}', "after the end"),
        (b'{"text": "a"}', "not a JSON array"),
    ],
)
def test_damaged_arrays_are_refused(content, message):
    with pytest.raises(DataError, match=message):
        list(split_array(chunked(content, 5), 0, LIMIT, "x"))


def test_a_bad_item_of_an_array_leaves_the_others_whole():
    items = list(
        split_array(iter([b'[{"text": nope}, 17, }x, "s", {"text": "b"}]']), 0, LIMIT, "x")
    )
    assert [payload for _, payload, _ in items] == [
        b'{"text": nope}',
        b"17",
        b"}x",
        b'"s"',
        b'{"text": "b"}',
    ]


def test_xml_that_declares_entities_or_ends_early_is_refused():
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><mediawiki><page>&a;</page></mediawiki>'
    with pytest.raises(DataError, match="document type"):
        list(split_pages(chunked(bomb, 7), 0, LIMIT, "x"))
    for cut in (b"<mediawiki><page>text", b"<mediawiki><page>text</page>"):
        with pytest.raises(DataError, match="cut off"):
            list(split_pages(chunked(cut, 7), 0, LIMIT, "x"))


# --- formats and damage


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_documents(tmp_path, texts, write_source, kind):
    expected = texts(40)
    source = sniff(write_source(tmp_path, kind, expected))
    check_text_key(source, LIMIT)
    items = list(items_of(source, 0, LIMIT))
    clean = cleaner(source.format, "text")
    assert [clean(payload, offset) for offset, payload, _ in items] == [
        text.strip() for text in expected
    ]
    assert next(items_of(source, items[17][0], LIMIT)) == items[17]  # a cursor resumes there


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_mediawiki_in_utf8_and_utf16(tmp_path, mediawiki, encoding):
    path = tmp_path / "dump"
    path.write_bytes(
        bz2.compress(mediawiki([("北京", 0, "文" * 80), ("甲 -> 乙", 0, "x")]).encode(encoding))
    )
    source = sniff(path)
    assert source.format == "mediawiki"
    items = list(items_of(source, 0, LIMIT))
    assert len(items) == 2
    assert "文".encode() * 80 in items[0][1]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_truncated_and_damaged_compressed_files_say_how_far_they_go(tmp_path, texts, compress):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(3000)).encode()
    whole = compress(lines)
    for number, content in enumerate(
        (whole[:-20], whole[: len(whole) // 2], compress(lines) + b"garbage")
    ):
        path = tmp_path / f"{number}"
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged or cut off") as caught:
            list(items_of(sniff(path), 0, LIMIT))
        assert "bytes could be decompressed" in caught.value.got


def test_a_damaged_later_stream_of_a_bz2_file_is_not_taken_for_its_end(tmp_path):
    first, second = bz2.compress(b'{"text": "a"}\n'), bytearray(bz2.compress(b'{"text": "b"}\n'))
    second[len(second) // 2] ^= 0xFF
    path = tmp_path / "x.bz2"
    path.write_bytes(first + bytes(second))
    with pytest.raises(DataError, match="damaged"):
        list(items_of(SourceFile(str(path), 1, "jsonl", "bz2"), 0, LIMIT))


def test_pieces_of_a_highly_compressed_file_stay_small(tmp_path):
    for name, content in (
        ("gz", gzip.compress(bytes(50 << 20))),
        ("bz2", bz2.compress(bytes(50 << 20))),
        ("xz", lzma.compress(bytes(50 << 20))),
        ("zst", zstd(bytes(50 << 20))),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        sizes = [len(piece) for piece in pieces(SourceFile(str(path), len(content), "jsonl", name))]
        assert sum(sizes) == 50 << 20
        assert max(sizes) <= 2 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x28\xb5\x2f\xfd1234", "zst file is damaged"),
        (b"PK\x03\x04zip", "zip"),
        (b"  \n \n", "white space"),
        (b"<html><body>404", "not a MediaWiki"),
        (b"plain text, no JSON\n" * 9, "not known"),
        (b'{\n  "text": "a"\n}\n', "several lines"),
        ("\n".join('{"text": "北京是中国的首都"}' for _ in range(9)).encode("gb18030"), "gb18030"),
        ("\n".join('{"text": "北京是中国的首都"}' for _ in range(9)).encode("utf-16"), "utf-16"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_content(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        sniff(path)


def test_a_missing_text_key_lists_the_keys_that_are_there(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"content": "a", "id": 1}\n')
    with pytest.raises(DataError, match="no key 'text'") as caught:
        check_text_key(sniff(path), LIMIT)
    assert "content (string), id (a number)" in caught.value.got
    assert caught.value.fix == "data.text_key=content"
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="JSON object"):
        check_text_key(sniff(path), LIMIT)


def test_a_line_number_is_found_from_an_offset(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\nthree\n"))
    assert file_and_line(sniff_as(path), 8) == f"{path}:3"


def sniff_as(path: Path) -> SourceFile:
    return SourceFile(str(path), path.stat().st_size, "jsonl", "gz")


# --- shards


def test_shards_are_the_same_from_every_cursor(tmp_path, texts, write_source):
    sources = tuple(
        sniff(write_source(tmp_path, kind, texts(60, seed=i))) for i, kind in enumerate(KINDS[:5])
    )
    whole = list(read_shards(sources, 4000, LIMIT))
    assert len(whole) > 5
    records = [
        (batch.source, offset)
        for raw in whole
        for batch in raw.batches
        for offset, _, _ in batch.items()
    ]
    assert len(records) == len(set(records)) == 300
    assert [raw.number for raw in whole] == list(range(len(whole)))
    for raw in whole:
        assert list(read_shards(sources, 4000, LIMIT, raw.start, raw.number)) == whole[raw.number :]
    assert list(read_shards(sources, 4000, LIMIT, whole[-1].end, 99)) == []
    assert whole[0].start == Cursor()


def test_a_record_too_long_reaches_its_shard_as_dropped(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n' + json.dumps({"text": "b" * 500}) + "\n")
    (raw,) = read_shards((sniff(path),), 1 << 20, 100)
    (batch,) = CleanJob(("jsonl",), "text").batches(raw)
    assert batch.texts == ["a"]
    assert [(item.offset, "max_document_bytes" in item.why.reason) for item in batch.dropped] == [
        (14, True)
    ]
