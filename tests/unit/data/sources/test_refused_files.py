"""Files that give no text: refused by their kind, with a fix that, applied, changes the outcome."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import re
import shlex
import shutil
import sqlite3
import subprocess
import tarfile

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from wikillm.core.errors import DataError
from wikillm.data.prepare.prepare import prepare_store
from wikillm.data.sources.sniff import sniff

TEXTS = [f'第{i}篇 is "about" a river, and it\'s the {i}th of them; 河流{i}。' for i in range(60)]
RECORDS = [{"text": text} for text in TEXTS]
PLAIN = [f"line {i} of a text" for i in range(60)]
ROWS = ["id,text", *(f"{i},plain text number {i}" for i in range(60)), ""]
TABLE = "\n".join(ROWS)


def lines(records: list, end: str = "\n", **how: object) -> bytes:
    return "".join(json.dumps(record, **how) + end for record in records).encode()


def arrow(is_file: bool) -> bytes:
    content = pyarrow.table({"text": TEXTS})
    sink = pyarrow.BufferOutputStream()
    new = pyarrow.ipc.new_file if is_file else pyarrow.ipc.new_stream
    with new(sink, content.schema) as writer:
        writer.write_table(content)
    return sink.getvalue().to_pybytes()


def parquet_of(**columns: list) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("inner.jsonl"), io.BytesIO())
    return content.getvalue()


def sqlite() -> bytes:
    with sqlite3.connect(":memory:") as db:
        db.execute("create table t (text)")
        return db.serialize()


NO_TEXT = "no text under 'text'"
NO_OBJECTS = "None of the first 50 records is a JSON object"
COMMA = "Each line of a file ends with a comma"
PYTHON = "Python dicts, not JSON: single quotes"
AROUND = "one JSON object around its records"
SEVERAL = "A JSON object is on several lines"
BEFORE = "characters before their JSON objects"
CR_ALONE = "end with CR alone"
OTHER_MARK = "are separated by"
NO_ROW = "rows of a table fits its header"
UNKNOWN = "format of a file is not known"
CHAT = [{"messages": [{"role": "user", "content": text}]} for text in TEXTS]
SHARE = [{"conversations": [{"from": "gpt", "value": text}]} for text in TEXTS]
INSTRUCTIONS = [{"instruction": "do", "input": "", "output": text} for text in TEXTS]
DICTS = "\n".join(map(repr, RECORDS)).encode()
DATED = {"version": "1", "lists": [], "data": RECORDS}

# name of the file, its content, what the error says
EXPLAINED: dict[str, tuple[str, bytes, str]] = {
    "JavaScript": ("x.json", b'{text: "a"}\n' * 9, "begins like JSON"),
    "no records": ("x.json", b"[]\n", "no records"),
    "a table without a header": ("x.csv", "\n".join(ROWS[1:]).encode(), NO_TEXT),
    "two columns of one name": ("x.csv", TABLE.replace("id", "text").encode(), "Several columns"),
    "a header alone": ("x.csv", b"id,text\n", "no rows"),
    "a header on two lines": ("x.csv", b'"i\nd",' + TABLE[3:].encode(), "not closed on its line"),
    "rows of three fields": ("x.csv", TABLE.replace("\n", ",\n").encode()[8:], NO_TEXT),
    "short rows": ("x.csv", TABLE.replace("id", "id,n").encode(), NO_ROW),
    "a column of bytes": ("x.parquet", parquet_of(text=[t.encode() for t in TEXTS]), NO_TEXT),
    "a column of lists": ("x.parquet", parquet_of(text=[[t] for t in TEXTS]), NO_TEXT),
    "HTML": ("x.jsonl", b"<html><body>\n404", "not a MediaWiki export"),
    "other XML": ("x.xml", b"<?xml version='1.0'?>\n<p>a</p>", "not a MediaWiki export"),
    "GB 18030": ("x.jsonl", "\n".join(TEXTS).encode("gb18030"), "is not UTF-8.*GB18030"),
    "white space": ("x.jsonl", b"  \n \n", "white space"),
    "damaged zst": ("x.jsonl", b"\x28\xb5\x2f\xfd1234", "zst file is damaged"),
    "Latin-1": ("x.csv", TABLE.replace("plain", "café déjà").encode("latin-1"), "WINDOWS-1252"),
    "Git LFS": ("x.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256", "LFS pointer"),
    "git-annex": ("x.jsonl", b"../../.git/annex/objects/a/b/x\n", "git-annex pointer"),
    "an Arrow stream": ("data.arrow", arrow(is_file=False), "Arrow files"),
    "an Arrow file": ("x.arrow", arrow(is_file=True), "Arrow files"),
    "zip": ("x.zip", b"PK\x03\x04", "zip files"),
    "tar": ("x.tar.gz", tarred(), "tar files"),
    "pickle": ("x.txt", pickle.dumps(RECORDS), "pickle files"),
    "SQLite": ("x.jsonl", sqlite(), "SQLite files"),
    "SQL of a wiki": ("zhwiki-page.sql", b"-- MySQL dump 10.19\nINSERT INTO `page`", "SQL files"),
    "SQL, gzip": ("zhwiki-page.sql.gz", gzip.compress(b"/*M!999999\\- enable"), "SQL files"),
    "PDF": ("x.txt", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF files"),
    "token ids": ("x.txt", np.arange(5000, dtype="<u4").tobytes(), "binary"),
    "random bytes": ("x.jsonl", random.Random(1).randbytes(5000), "binary"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLAINED)
def test_what_gives_no_text_is_refused_by_its_kind(tmp_path, settings, name):
    file, content, message = EXPLAINED[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare_store(settings(tmp_path / file))
    assert str(tmp_path / file) in caught.value.got
    assert caught.value.fix and not re.match(r"data\.text_key=", caught.value.fix)


# name of the file, its content, what the error says, the setting that it advises
SETTINGS: dict[str, tuple[str, bytes, str, tuple[str, object]]] = {
    "another key": ("x.jsonl", lines([{"url": "u" * 300, "content": t} for t in TEXTS]), NO_TEXT,
                    ("text_key", "content")),
    "a column of a table": ("x.csv", TABLE.replace("id,text", "id,content").encode(), NO_TEXT,
                            ("text_key", "content")),
    "another case": ("x.jsonl", lines([{"Text": t, "title": "x"} for t in TEXTS]), NO_TEXT,
                     ("text_key", "Text")),
    "another column": ("x.parquet", parquet_of(id=list(range(60)), texts=TEXTS), NO_TEXT,
                       ("text_key", "texts")),
    "a table under another name": ("table.data", TABLE.encode(), UNKNOWN, ("format", "csv")),
    "lines": ("notes.md", "\n".join(PLAIN).encode(), UNKNOWN, ("format", "lines")),
    "paragraphs": ("notes.md", "\n\n".join(PLAIN).encode(), UNKNOWN, ("format", "blocks")),
    "one column with commas": ("x.csv", "\n".join(["text", *TEXTS[:59]]).encode(), NO_ROW,
                               ("format", "lines")),
    "a table named .txt": ("x.txt", TABLE.encode(), "one document", ("format", "csv")),
    "the only text": ("x.jsonl", lines([{"my text": t, "n": 1} for t in TEXTS]), NO_TEXT,
                      ("text_key", "my text")),
    "not Parquet": ("x.parquet", lines(RECORDS), "is not what", ("format", "auto")),
    "one text": ("novel.txt", "\n".join(PLAIN).encode(), "one document", ("format", "lines")),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_is_advised_reads_the_file(tmp_path, settings, name):
    file, content, message, (key, value) = SETTINGS[name]
    (tmp_path / file).write_bytes(content)
    cfg = settings(tmp_path / file, val_fraction=0.3)
    if name == "not Parquet":
        cfg = cfg.model_copy(update={"format": "parquet"})
    with pytest.raises(DataError, match=message) as caught:
        prepare_store(cfg)
    assert f"data.{key}={value}" in caught.value.fix or value in caught.value.fix
    store = prepare_store(cfg.model_copy(update={key: value}))
    assert store.manifest.funnel.kept_records == 60


# what the file is: its name, its content, what the error says
COMMANDS: dict[str, tuple[str, bytes, str]] = {
    "CR between rows": ("x.csv", TABLE.replace("\n", "\r").encode(), CR_ALONE),
    "the last row ends": ("x.csv", TABLE.replace("\n", "\r")[:-1].encode() + b"\n", CR_ALONE),
    "CR between records": ("x.jsonl", lines(RECORDS, "\r"), CR_ALONE),
    "UTF-16": ("x.csv", TABLE.encode("utf-16"), "looks like utf-16"),
    "UTF-16 without a mark": ("x.csv", TABLE.encode("utf-16-le"), "looks like utf-16-le"),
    "GB 18030": ("x.jsonl", lines(RECORDS, ensure_ascii=False).decode().encode("gb18030"), "UTF-8"),
    "commas at line ends": ("x.jsonl", lines(RECORDS, ",\n"), COMMA),
    "commas, compressed": ("x.jsonl.gz", gzip.compress(lines(RECORDS, ",\n")), COMMA),
    "commas, not after the last": ("it's 1.jsonl", lines(RECORDS, ",\n")[:-2], COMMA),
    "commas before brackets": ("x.jsonl", lines(RECORDS).replace(b"}", b",}"), PYTHON),
    "Python dicts": ("x.jsonl", DICTS, PYTHON),
    "Python dicts in a .txt": ("x.txt", DICTS, PYTHON),
    "Python dicts in a list": ("x.json", repr(RECORDS).encode(), PYTHON),
    "a mark before each record": ("x", lines(RECORDS).replace(b"{", b"\x1e{"), BEFORE),
    "BOMs": ("x.jsonl", lines(RECORDS).replace(b"{", b"\xef\xbb\xbf{"), BEFORE),
    "tabs in strings": ("x.jsonl", lines(RECORDS).replace(b"river", b"\t"), "control characters"),
    "indented objects": ("x.jsonl", lines(RECORDS, indent=2), SEVERAL),
    "objects on one line": ("x.json", lines(RECORDS, ""), SEVERAL),
    "an object around the records": ("x.json", lines([DATED]), NO_TEXT),
    "the same, indented": ("x.json", lines([DATED], indent=2), AROUND),
    "the same, cut off": ("x.json", lines([{"KEY": RECORDS * 99}], indent=2), AROUND),
    "deeper": ("x.json", lines([{"n": 1, "data": {"the train": RECORDS}}]), NO_TEXT),
    "an object of columns": ("x.json", lines([{"text": TEXTS}]), NO_TEXT),
    "an object of objects": ("x.json", lines([dict(enumerate(RECORDS))]), NO_TEXT),
    "an array of strings": ("x.json", lines([TEXTS]), NO_OBJECTS),
    "a string on each line": ("x.jsonl", lines(TEXTS), NO_OBJECTS),
    "an array on each line": ("x.jsonl", lines([RECORDS[:30], RECORDS[30:]]), NO_OBJECTS),
    "chat": ("x.jsonl", lines(CHAT), NO_TEXT),
    "chat of ShareGPT": ("x.json", lines([SHARE]), NO_TEXT),
    "instructions": ("x.jsonl", lines(INSTRUCTIONS), NO_TEXT),
    "nested text": ("x.jsonl", lines([{"doc": record} for record in RECORDS]), NO_TEXT),
    "text in a list": ("x.jsonl", lines([{"text": [text]} for text in TEXTS]), NO_TEXT),
    "a caret between fields": ("x.csv", TABLE.replace(",", "^").encode(), OTHER_MARK),
    "0x1f between fields": ("x.csv", TABLE.replace(",", "\x1f").encode(), OTHER_MARK),
    "a wide comma": ("x.csv", TABLE.replace(",", "，").encode(), OTHER_MARK),
    "quotes after a backslash": (
        "x.csv", re.sub(r",(p.*)", r',"\1 \\"so\\""', TABLE).encode(), NO_ROW),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_advised_converts_the_file(tmp_path, settings, name):
    file, content, message = COMMANDS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare_store(settings(tmp_path / file))
    command, advice = caught.value.fix.splitlines()
    tool = next(t for t in ("jq", "iconv", "python3", "sed", "tr") if f"{t} " in command)
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool}")
    subprocess.run(["bash", "-c", command], check=True)
    (word,) = shlex.split(advice.partition(" instead: ")[2])
    funnel = prepare_store(settings(word.removeprefix("data.path="))).manifest.funnel
    assert (funnel.kept_records, funnel.bad_records) == (60 if "cut" not in name else 60 * 99, 0)


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.csv", "x.txt", "x.json.gz", "no-name"])
@pytest.mark.parametrize("wanted", ["auto", "jsonl", "csv", "text"])
def test_a_pointer_is_recognised_under_any_name_and_compressed(tmp_path, name, wanted):
    pointer = EXPLAINED["Git LFS"][1]
    for content in (pointer, gzip.compress(pointer)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="Git LFS pointer"):
            sniff(tmp_path / name, wanted)


def test_metadata_and_token_stores_beside_the_data_are_left_out(tmp_path, settings, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "x.jsonl").write_bytes(lines(RECORDS))
    for name in ("dataset_infos.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    prepare_store(settings(folder / "x.jsonl", store=str(folder / "store"), val_fraction=0.3))
    store = prepare_store(settings(folder, val_fraction=0.3))
    assert [source.path for source in store.manifest.sources] == [str(folder / "x.jsonl")]
    shown = capsys.readouterr().out
    assert "store (a token store)" in shown and "dataset_infos.json, tokenizer.json" in shown


def test_a_folder_of_a_data_set_on_disk_is_refused_as_arrow(tmp_path):
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(arrow(is_file=False))
    (tmp_path / "dataset_info.json").write_text('{"features": {}}')
    from wikillm.data.sources.locate import locate

    with pytest.raises(DataError, match="Arrow files cannot be read") as caught:
        locate([str(tmp_path)])
    assert "load_from_disk" in caught.value.fix
