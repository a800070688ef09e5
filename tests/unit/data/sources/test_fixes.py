"""Each refusal of a source names the kind of the mistake, and its `fix:` is applied here as it stands: the outcome changes.

A fix is a shell line, a setting, or both; what follows in words is for the reader. After it, all documents are there.
"""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from wikillm.config.flags import read_text
from wikillm.config.keys import all_keys
from wikillm.config.schema import DataSection
from wikillm.core.errors import DataError
from wikillm.data.prepare.prepare import prepare_store

TEXTS = [
    f'第{i}篇 is "about" a river, {i} km long, and it\'s the {i}th of them; 河流{i}。'
    for i in range(60)
]
RECORDS = [{"text": text} for text in TEXTS]


def lines(records: list, dump: Callable = json.dumps, end: str = "\n") -> bytes:
    return "".join(dump(record) + end for record in records).encode()


def table(delimiter: str, end: str = "\n", header: str = "id{}text") -> bytes:
    rows = [header.format(delimiter), *(f"{i}{delimiter}plain text number {i}" for i in range(60))]
    return end.join([*rows, ""]).encode()


def arrow(kind: str) -> bytes:
    content = pyarrow.table({"text": TEXTS})
    sink = pyarrow.BufferOutputStream()
    new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with new(sink, content.schema) as writer:
        writer.write_table(content)
    return sink.getvalue().to_pybytes()


def parquet_of(**columns: list) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("inner.jsonl", lines(RECORDS))
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo("inner.jsonl")
        info.size = len(lines(RECORDS))
        archive.addfile(info, io.BytesIO(lines(RECORDS)))
    return content.getvalue()


def indented(record: dict) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False)


CHAT = [
    {"id": i, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": t}]}
    for i, t in enumerate(TEXTS)
]
SHARE = [
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": t}]} for t in TEXTS
]
LINES_OF_TEXT = b"".join(b"line %d of a text\n" % i for i in range(60))
PARAGRAPHS = b"".join(b"paragraph %d\nof a text\n\n" % i for i in range(60))
MARKED_UP = b"".join(b"<p>line %d</p>\n" % i for i in range(59))
LONG_CELL = "\n".join(f"line {i} of a long cell" for i in range(1200))

# name of the file, its content, what the error says
CASES: dict[str, tuple[str, bytes, str]] = {
    "commas at line ends": ("x.jsonl", lines(RECORDS, end=",\n"), "ends with a comma"),
    "commas, but not after the last": ("x.jsonl", lines(RECORDS, end=",\n")[:-2] + b"\n", "ends with a comma"),
    "commas inside records": ("x.jsonl", lines(RECORDS, end=",}\n").replace(b"},}", b",}"), "a comma before"),
    "Python dicts": ("x.jsonl", lines([{"text": t, "a": None, "b": True} for t in TEXTS], repr), "Python dicts"),
    "Python dicts in a list": ("x.json", repr(RECORDS).encode(), "Python dicts"),
    "Python dicts in a .txt": ("x.txt", lines(RECORDS, repr), "Python dicts"),
    "indented objects": ("x.jsonl", lines(RECORDS, indented), "several lines"),
    "an object around the records": ("x.json", json.dumps({"version": 1, "data": RECORDS}).encode(), "records"),
    "the same, indented": ("x.json", indented({"info": {"n": 60}, "rows": RECORDS}).encode(), "around its records"),
    "deeper": ("x.json", json.dumps({"data": {"train": RECORDS}}).encode(), "no key"),
    "a compressed one": ("x.json.gz", b"gzip:" + json.dumps({"data": RECORDS}).encode(), "no key"),
    "an object of columns": ("x.json", json.dumps({"text": TEXTS}).encode(), "a list, not a string"),
    "columns of pandas": ("x.json", json.dumps({"text": dict(enumerate(TEXTS))}).encode(), "an object, not a string"),
    "an object of records": ("x.json", json.dumps(dict(enumerate(RECORDS))).encode(), "no key"),
    "an array of strings": ("x.json", json.dumps(TEXTS).encode(), "JSON object"),
    "a string on each line": ("x.jsonl", lines(TEXTS), "JSON object"),
    "an array on each line": ("x.jsonl", lines([RECORDS[:30], RECORDS[30:]]), "JSON object"),
    "chat": ("x.jsonl", lines(CHAT), "no key 'text'"),
    "chat of ShareGPT": ("x.json", json.dumps(SHARE).encode(), "no key 'text'"),
    "instructions": ("x.jsonl", lines([{"instruction": "do", "input": "", "output": t} for t in TEXTS]), "no key"),
    "nested text": ("x.jsonl", lines([{"doc": {"text": t}} for t in TEXTS]), "no key"),
    "text in a list": ("x.jsonl", lines([{"text": [t, "more"]} for t in TEXTS]), "a list, not a string"),
    "another key": ("x.jsonl", lines([{"url": "u" * 300, "content": t, "texts": 3} for t in TEXTS]), "no key"),
    "a key with a space": ("x.jsonl", lines([{"id": 1, "the body's text": t} for t in TEXTS]), "no key"),
    "another case": ("x.jsonl", lines([{"Text": t, "title": "x"} for t in TEXTS]), "no key"),
    "CR alone, CSV": ("x.csv", table(",", "\r"), "end with CR alone"),
    "CR alone, but a line feed at the end": ("x.csv", table(",", "\r")[:-1] + b"\n", "end with CR alone"),
    "CR alone, JSON Lines": ("x.jsonl", lines(RECORDS, end="\r"), "end with CR alone"),
    "a caret between fields": ("x.csv", table("^"), r"separated by '\^'"),
    "a table under another name": ("table.data", table(","), "format of a file is not known"),
    "a table without a header": ("x.csv", table(",")[8:].replace(b"plain", b"very " * 20), "no header"),
    "plain text under another name": ("notes.md", LINES_OF_TEXT, "format of a file is not known"),
    "paragraphs under another name": ("notes.md", PARAGRAPHS, "format of a file is not known"),
    "HTML": ("x.jsonl", b"<html><body>\n" + MARKED_UP, "web page"),
    "other XML": ("x.xml", b"<?xml version='1.0'?>\n" + MARKED_UP, "not a MediaWiki"),
    "an Arrow stream": ("data-00000-of-00001.arrow", arrow("stream"), "Arrow streams"),
    "an Arrow file": ("x.arrow", arrow("file"), "Arrow files"),
    "objects on one line": ("x.json", b"".join(json.dumps(r).encode() for r in RECORDS), "on one line"),
    "zip": ("x y.jsonl.zip", zipped(), "zip files"),
    "tar": ("x.tar.gz", tarred(), "tar archive"),
    "GB 18030": ("x.jsonl", lines(RECORDS, lambda r: json.dumps(r, ensure_ascii=False)).decode().encode("gb18030"), "gb18030"),
    "UTF-16": ("x.csv", table(",").decode().encode("utf-16"), "utf-16"),
    "UTF-16 without a mark": ("x.csv", table(",").decode().encode("utf-16-le"), "utf-16-le"),
    "Latin-1": ("x.csv", table(",").replace(b"plain", b"caf\xe9 d\xe9j\xe0 vu"), "windows-1252"),
    "a long cell": ("x.csv", f'id,text\n1,"{LONG_CELL}"\n'.encode() + table(",")[8:], "goes on for more than"),
    "another column": ("x.parquet", parquet_of(url=["u"] * 60, story=TEXTS, n=[1] * 60), "no text under 'text'"),
    "a column of bytes": ("x.parquet", parquet_of(text=[t.encode() for t in TEXTS]), "no text under 'text'"),
    "a column of lists": ("x.parquet", parquet_of(text=[[t] for t in TEXTS]), "no text under 'text'"),
    "not Parquet": ("x.parquet", lines(RECORDS), "is not what"),
    "one text": ("novel.txt", LINES_OF_TEXT, "one document"),
    "one text with paragraphs": ("novel.txt", PARAGRAPHS, "one document"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_fix_changes_the_outcome(tmp_path, settings, monkeypatch, name):
    file, content, message = CASES[name]
    if content.startswith(b"gzip:"):
        import gzip

        content = gzip.compress(content[5:])
    (tmp_path / file).write_bytes(content)
    given = {"format": "parquet"} if name == "not Parquet" else {}
    cfg = settings(tmp_path / file, val_fraction=0.3, **given)
    with pytest.raises(DataError, match=message) as caught:
        prepare_store(cfg)
    assert caught.value.fix is not None
    cfg = applied(caught.value.fix, cfg)
    if name == "a column of lists":  # first JSON Lines, and then what they are
        with pytest.raises(DataError, match="a list, not a string") as caught:
            prepare_store(cfg)
        cfg = applied(caught.value.fix, cfg)
    store = prepare_store(cfg)
    read = store.manifest.funnel.read_records
    assert (read, store.manifest.funnel.bad_records) in [(60, 0), (61, 0), (59, 0)], (
        store.manifest.funnel.table()
    )
    kept = store.manifest.funnel.kept_records
    assert kept == read or store.manifest.duplicates


def applied(fix: str, cfg: DataSection) -> DataSection:
    """`cfg` with the fix: its shell line run, its setting set; an alternative counts where there is nothing else."""
    changes: dict[str, object] = {}
    for line in fix.splitlines():
        settings = [word.strip("();") for word in _words(line) if word.startswith("data.")]
        if not line.startswith(("or ", "(lines", "(plain", "if ", "download ")) and not settings:
            python = str(Path(sys.executable).parent)
            env = {"PATH": f"{python}:/usr/bin:/bin"}
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
        if line.startswith("or ") and changes:
            continue
        for word in settings:
            key, _, text = word.partition("=")
            if key in all_keys():
                changes.setdefault(key.removeprefix("data."), read_text(all_keys()[key], text))
    assert changes, f"nothing to apply: {fix}"
    return DataSection(**{**cfg.model_dump(), **changes})


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # prose, with an apostrophe
        return []


def test_a_folder_of_a_data_set_on_disk_is_converted_whole(tmp_path, settings):
    """As `datasets` writes it, with its metadata; the parts are streams, and one is a file."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(5):
        part = pyarrow.table({"text": TEXTS[number * 12 : number * 12 + 12]})
        with (pyarrow.ipc.new_file if number == 3 else pyarrow.ipc.new_stream)(
            str(folder / f"data-{number:05d}-of-00005.arrow"), part.schema
        ) as writer:
            writer.write_table(part)
    (folder / "dataset_info.json").write_text('{"features": {}}')
    (folder / "state.json").write_text('{"_data_files": []}')
    cfg = settings(tmp_path / "set", val_fraction=0.3)
    with pytest.raises(DataError, match="holds Arrow files") as caught:
        prepare_store(cfg)
    assert prepare_store(applied(caught.value.fix, cfg)).manifest.funnel.kept_records == 60


def test_metadata_and_token_stores_beside_the_data_are_left_out(tmp_path, settings, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.jsonl").write_bytes(lines(RECORDS))
    for name in ("dataset_infos.json", "tokenizer.json"):
        (tmp_path / "set" / name).write_text("{}")
    prepare_store(
        settings(
            tmp_path / "set" / "x.jsonl", store=str(tmp_path / "set" / "store"), val_fraction=0.3
        )
    )
    cfg = settings(tmp_path / "set", val_fraction=0.3)
    assert [source.path for source in prepare_store(cfg).manifest.sources] == [
        str(tmp_path / "set" / "x.jsonl")
    ]
    said = capsys.readouterr().out
    assert "store (a token store)" in said and "dataset_infos.json, tokenizer.json" in said


def test_one_file_of_several_is_not_to_replace_the_others(tmp_path, settings):
    (tmp_path / "a.jsonl").write_bytes(lines(RECORDS))
    (tmp_path / "b.jsonl").write_bytes(lines(RECORDS, repr))
    with pytest.raises(DataError, match="Python dicts") as caught:
        prepare_store(settings(tmp_path / "*.jsonl"))
    assert caught.value.fix.endswith(
        "> b.new.jsonl\nand name b.new.jsonl instead of it, beside the other files"
    )
