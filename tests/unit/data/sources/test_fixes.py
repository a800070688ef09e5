"""Each refusal of a source names the mistake; its `fix:`, applied verbatim, changes the outcome.

A fix is a shell line, a setting, or both; words after it are for the reader. Afterwards all
documents are there.
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


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def unescaped(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False)


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
LONG_CELL = b'id,text\n1,"' + b"\n".join(b"line %d of a cell" % i for i in range(1200)) + b'"\n'

NO_KEY = "no key"
NO_TEXT = "no text under 'text'"
NO_OBJECTS = "JSON object"
A_LIST = "a list, not a string"
CR_ALONE = "end with CR alone"
UNKNOWN = "format of a file is not known"
COMMA = "ends with a comma"
PYTHON = "Python dicts"
INSTRUCTIONS = [{"instruction": "do", "input": "", "output": text} for text in TEXTS]
CONTENT = [{"url": "u" * 300, "content": text, "texts": 3} for text in TEXTS]
PYTHON_RECORDS = [{"text": text, "a": None, "b": True} for text in TEXTS]
COMMA_INSIDE = lines(RECORDS, end=",}\n").replace(b"},}", b",}")
NO_HEADER = table(",")[8:].replace(b"plain", b"very " * 20)
LATIN = table(",").replace(b"plain", b"caf\xe9 d\xe9j\xe0 vu")

# name of the file, its content, what the error says
CASES: dict[str, tuple[str, bytes, str]] = {
    "commas at line ends": ("x.jsonl", lines(RECORDS, end=",\n"), COMMA),
    "commas, but not after the last": ("x.jsonl", lines(RECORDS, end=",\n")[:-2] + b"\n", COMMA),
    "commas inside records": ("x.jsonl", COMMA_INSIDE, "a comma before"),
    PYTHON: ("x.jsonl", lines(PYTHON_RECORDS, repr), PYTHON),
    "Python dicts in a list": ("x.json", repr(RECORDS).encode(), PYTHON),
    "Python dicts in a .txt": ("x.txt", lines(RECORDS, repr), PYTHON),
    "indented objects": ("x.jsonl", lines(RECORDS, indented), "several lines"),
    "an object around the records": ("x.json", encoded({"version": 1, "data": RECORDS}), "records"),
    "the same, indented": ("x.json", indented({"n": {}, "rows": RECORDS}).encode(), "around"),
    "deeper": ("x.json", encoded({"data": {"train": RECORDS}}), NO_KEY),
    "a compressed one": ("x.json.gz", b"gzip:" + encoded({"data": RECORDS}), NO_KEY),
    "an object of columns": ("x.json", encoded({"text": TEXTS}), A_LIST),
    "columns of pandas": ("x.json", encoded({"text": dict(enumerate(TEXTS))}), "an object, not"),
    "an object of records": ("x.json", encoded(dict(enumerate(RECORDS))), NO_KEY),
    "an array of strings": ("x.json", encoded(TEXTS), NO_OBJECTS),
    "a string on each line": ("x.jsonl", lines(TEXTS), NO_OBJECTS),
    "an array on each line": ("x.jsonl", lines([RECORDS[:30], RECORDS[30:]]), NO_OBJECTS),
    "chat": ("x.jsonl", lines(CHAT), NO_KEY),
    "chat of ShareGPT": ("x.json", encoded(SHARE), NO_KEY),
    "instructions": ("x.jsonl", lines(INSTRUCTIONS), NO_KEY),
    "nested text": ("x.jsonl", lines([{"doc": {"text": t}} for t in TEXTS]), NO_KEY),
    "text in a list": ("x.jsonl", lines([{"text": [t, "more"]} for t in TEXTS]), A_LIST),
    "another key": ("x.jsonl", lines(CONTENT), NO_KEY),
    "a key with a space": ("x.jsonl", lines([{"the body's text": t} for t in TEXTS]), NO_KEY),
    "another case": ("x.jsonl", lines([{"Text": t, "title": "x"} for t in TEXTS]), NO_KEY),
    "CR alone, CSV": ("x.csv", table(",", "\r"), CR_ALONE),
    "CR alone, a line feed at the end": ("x.csv", table(",", "\r")[:-1] + b"\n", CR_ALONE),
    "CR alone, JSON Lines": ("x.jsonl", lines(RECORDS, end="\r"), CR_ALONE),
    "a caret between fields": ("x.csv", table("^"), r"separated by '\^'"),
    "a table under another name": ("table.data", table(","), UNKNOWN),
    "a table without a header": ("x.csv", NO_HEADER, "no header"),
    "plain text under another name": ("notes.md", LINES_OF_TEXT, UNKNOWN),
    "paragraphs under another name": ("notes.md", PARAGRAPHS, UNKNOWN),
    "HTML": ("x.jsonl", b"<html><body>\n" + MARKED_UP, "web page"),
    "other XML": ("x.xml", b"<?xml version='1.0'?>\n" + MARKED_UP, "not a MediaWiki"),
    "an Arrow stream": ("data-00000-of-00001.arrow", arrow("stream"), "Arrow streams"),
    "an Arrow file": ("x.arrow", arrow("file"), "Arrow files"),
    "objects on one line": ("x.json", b"".join(map(encoded, RECORDS)), "on one line"),
    "zip": ("x y.jsonl.zip", zipped(), "zip files"),
    "tar": ("x.tar.gz", tarred(), "tar archive"),
    "GB 18030": ("x.jsonl", lines(RECORDS, unescaped).decode().encode("gb18030"), "gb18030"),
    "UTF-16": ("x.csv", table(",").decode().encode("utf-16"), "utf-16"),
    "UTF-16 without a mark": ("x.csv", table(",").decode().encode("utf-16-le"), "utf-16-le"),
    "Latin-1": ("x.csv", LATIN, "windows-1252"),
    "a long cell": ("x.csv", LONG_CELL + table(",")[8:], "goes on for more than"),
    "another column": ("x.parquet", parquet_of(url=["u"] * 60, story=TEXTS), NO_TEXT),
    "a column of bytes": ("x.parquet", parquet_of(text=[t.encode() for t in TEXTS]), NO_TEXT),
    "a column of lists": ("x.parquet", parquet_of(text=[[t] for t in TEXTS]), NO_TEXT),
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
    assert read in (59, 60, 61) and store.manifest.funnel.bad_records == 0
    assert store.manifest.funnel.kept_records == read or store.manifest.duplicates


def applied(fix: str, cfg: DataSection) -> DataSection:
    """`cfg` with the fix: its shell line run, its setting set; an alternative counts only alone."""
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
    file = tmp_path / "set" / "x.jsonl"
    prepare_store(settings(file, store=str(tmp_path / "set" / "store"), val_fraction=0.3))
    store = prepare_store(settings(tmp_path / "set", val_fraction=0.3))
    assert [source.path for source in store.manifest.sources] == [str(file)]
    shown = capsys.readouterr().out
    assert "store (a token store)" in shown and "dataset_infos.json, tokenizer.json" in shown


def test_the_fix_for_one_of_several_files_keeps_the_others(tmp_path, settings):
    (tmp_path / "a.jsonl").write_bytes(lines(RECORDS))
    (tmp_path / "b.jsonl").write_bytes(lines(RECORDS, repr))
    with pytest.raises(DataError, match="Python dicts") as caught:
        prepare_store(settings(tmp_path / "*.jsonl"))
    advice = "> b.new.jsonl\nand name b.new.jsonl instead of it, beside the other files"
    assert caught.value.fix.endswith(advice)
