"""Recognising and decompressing sources in every format; damage; the cutting into shards."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest
from harness.splitting import LIMIT
from pyarrow import parquet

from wikillm.core.errors import DataError
from wikillm.data.filters.documents import TOO_LONG, CleanJob
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.sources import decompress
from wikillm.data.sources.check_source import check_source
from wikillm.data.sources.decompress import file_and_line, pieces
from wikillm.data.sources.read import Cursor, ShardReader, items_of
from wikillm.data.sources.sniff import sniff
from wikillm.data.text.clean import cleaner
from wikillm.data.types import Dropped, SourceFile

KINDS = (
    *("plain.jsonl", "bom-crlf.jsonl", "array.json", "one-line-array.json", "wrong-name.txt.gz"),
    *("two-members.jsonl.gz", "plain.jsonl.bz2", "multi-stream.jsonl.bz2", "array.json.bz2"),
    *("two-streams.jsonl.xz", "frames.jsonl.zst", "table.csv", "table.tsv.zst"),
    *("rows.parquet", "dictionary.parquet"),
)


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


def texts_of(path, text_key="text", wanted="auto") -> list[str | Dropped]:
    source = sniff(path, wanted, text_key)
    check_source(source, LIMIT)
    clean = cleaner(source.format, text_key)
    return [
        Dropped(TOO_LONG, size) if payload is None else clean(payload, offset)
        for offset, payload, size in items_of(source, 0, LIMIT)
    ]


# --- formats


def test_an_unknown_format_is_neither_read_nor_cleaned_as_another(tmp_path):
    with pytest.raises(ValueError, match="'yaml'"):
        items_of(SourceFile(str(tmp_path / "x"), 1, "yaml", "none"), 0, LIMIT)
    with pytest.raises(ValueError, match="'yaml'"):
        cleaner("yaml", "text")


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_documents(tmp_path, texts, write_source, kind):
    expected = texts(40)
    path = write_source(tmp_path, kind, expected)
    assert texts_of(path) == [text.strip() for text in expected]
    source = sniff(path)
    items = list(items_of(source, 0, LIMIT))
    assert next(items_of(source, items[17][0], LIMIT)) == items[17]  # a cursor resumes there


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_mediawiki_in_utf8_and_utf16(tmp_path, mediawiki, encoding):
    dump = mediawiki([("北京", 0, "文" * 80), ("甲 -> 乙", 0, "x")])
    (tmp_path / "dump").write_bytes(bz2.compress(dump.encode(encoding)))
    source = sniff(tmp_path / "dump")
    assert source.format == "mediawiki"
    first, _ = items_of(source, 0, LIMIT)
    assert "文".encode() * 80 in first[1]


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
@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("rows.parquet", ("parquet", "none")), ("two-streams.jsonl.xz", ("jsonl", "xz"))],
)
def test_parquet_and_compression_are_known_under_any_name(
    tmp_path, texts, write_source, name, kind, wanted
):
    write_source(tmp_path, kind, texts(9)).rename(tmp_path / name)
    source = sniff(tmp_path / name)
    assert (source.format, source.compression) == wanted


def test_a_text_file_is_one_document_unless_blocks_are_requested(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeff[第一章]\r\n甲\r\n\r\n乙\r\n".encode())
    assert texts_of(path) == ["[第一章]\n甲\n\n乙"]
    assert texts_of(path, wanted="blocks") == ["[第一章]\n甲", "乙"]
    with pytest.raises(DataError, match="longer than one document") as caught:
        check_source(sniff(path), 10)
    assert "data.format=blocks" in caught.value.fix


def test_rows_that_do_not_fit_are_bad_and_leave_the_others_whole(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'id,text\n1,a\n2\n3,b,c\n"4"x,d\n5,\xff\n6,\n7,"open')
    first, *dropped = texts_of(path)
    no_row = ("not a row of this table", True)
    assert first == "a"
    assert [(item.reason, item.is_bad) for item in dropped] == [
        *[no_row] * 3,
        ("not UTF-8", True),
        ("empty", False),
        no_row,
    ]


def test_nulls_and_long_texts_of_parquet_are_counted(tmp_path):
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"text": ["a", None, "b" * 99, "", "c"]})
    parquet.write_table(table, path, row_group_size=2)
    items = list(items_of(sniff(path), 0, 50))
    assert [payload is None for _, payload, _ in items] == [False, False, True, False, False]
    for number, (offset, _, size) in enumerate(items):
        assert list(items_of(sniff(path), offset + size, 50)) == items[number + 1 :]


def test_a_column_whose_name_has_a_dot_is_not_a_field_of_a_struct(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"meta": [{"text": "a"}], "meta.text": ["b"]}), path)
    assert [text for _, text, _ in items_of(sniff(path, text_key="meta.text"), 0, 50)] == [b"b"]


# --- damage


@pytest.mark.parametrize("name", COMPRESS)
def test_damaged_compressed_files_report_how_far_they_could_be_read(tmp_path, texts, name):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(1000)).encode()
    whole = COMPRESS[name](lines)
    for content in (whole[:-20], whole[: len(whole) // 2], whole + b"garbage"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DataError, match="damaged or cut off") as caught:
            list(items_of(sniff(tmp_path / "x"), 0, LIMIT))
        assert "bytes could be decompressed" in caught.value.got


def test_a_damaged_later_stream_of_a_bz2_file_is_an_error(tmp_path):
    second = bytearray(bz2.compress(b'{"text": "b"}\n'))
    second[len(second) // 2] ^= 0xFF
    path = tmp_path / "x.bz2"
    path.write_bytes(bz2.compress(b'{"text": "a"}\n') + bytes(second))
    with pytest.raises(DataError, match="damaged"):
        list(items_of(SourceFile(str(path), 1, "jsonl", "bz2"), 0, LIMIT))


@pytest.mark.parametrize("name", COMPRESS)
def test_pieces_of_a_highly_compressed_file_stay_small(tmp_path, name):
    content = COMPRESS[name](bytes(20 << 20))
    (tmp_path / name).write_bytes(content)
    source = SourceFile(str(tmp_path / name), len(content), "jsonl", name)
    sizes = [len(piece) for piece in pieces(source)]
    assert sum(sizes) == 20 << 20
    assert max(sizes) <= 2 << 20


def test_a_decompression_bomb_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(decompress, "BOMB_BYTES", 1 << 20)
    path = tmp_path / "x.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "a"}' + b"\n" * (32 << 20), preset=0))
    with pytest.raises(DataError, match="expands more than text does") as caught:
        list(items_of(sniff(path), 0, LIMIT))
    assert "32.0 MiB" not in caught.value.got


def test_an_xz_header_that_asks_for_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decompress, "_XZ_MEMORY", 1 << 20)
    path = tmp_path / "x.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"text": "a"}\n', preset=9))
    with pytest.raises(DataError, match="Memory usage limit") as refused:
        sniff(path)
    assert refused.value.fix.endswith(f"xz -dk {path}")


def test_a_zst_file_with_a_long_window_is_not_called_damaged(tmp_path):
    """As `zstd --long=31` writes it: a frame with a window of 2 GiB and one block as it is."""
    path = tmp_path / "x.jsonl.zst"
    line = b'{"text": "a"}\n'
    block = (len(line) << 3 | 1).to_bytes(3, "little") + line
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + block)
    with pytest.raises(DataError, match="too much memory") as refused:
        sniff(path)
    assert refused.value.fix.endswith(f"zstd -d --long=31 {path}")


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


def test_a_line_number_is_found_from_an_offset(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\nthree\n"))
    source = SourceFile(str(path), path.stat().st_size, "jsonl", "gz")
    assert file_and_line(source, 8) == f"{path}:3"


# --- shards


def test_shards_are_the_same_from_every_cursor(tmp_path, texts, write_source):
    kinds = (*KINDS[:5], "table.csv", "rows.parquet", "frames.jsonl.zst", "dictionary.parquet")
    sources = [
        sniff(write_source(tmp_path, kind, texts(60, seed=i))) for i, kind in enumerate(kinds)
    ]
    (tmp_path / "blocks").write_text("\n\n".join(texts(60, seed=20)).replace("\n\n\n", "\n"))
    sources.append(sniff(tmp_path / "blocks", "blocks"))
    reader = ShardReader(sources, 4000, LIMIT)
    whole = list(reader.read())
    records = [
        (batch.source, offset)
        for raw in whole
        for batch in raw.batches
        for offset, _, _ in batch.items()
    ]
    assert len(records) == len(set(records)) == 60 * len(sources)
    assert [raw.number for raw in whole] == list(range(len(whole)))
    for raw in whole:
        assert list(reader.read(raw.start, raw.number)) == whole[raw.number :]
    assert list(reader.read(whole[-1].end, 99)) == []
    assert whole[0].start == Cursor()


def test_a_record_too_long_reaches_its_shard_as_dropped(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n' + json.dumps({"text": "b" * 500}) + "\n")
    (raw,) = ShardReader((sniff(path),), 1 << 20, 100).read()
    (cleaned,) = CleanJob(("jsonl",), "text").batches(raw)
    assert cleaned.texts == ["a"]
    assert [(item.offset, item.why.reason) for item in cleaned.dropped] == [(14, TOO_LONG)]
