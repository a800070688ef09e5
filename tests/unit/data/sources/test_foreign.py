"""Files that are no source, whatever their name: the error names their kind."""

from __future__ import annotations

import gzip
import pickle
import random
import sqlite3
import struct

import numpy as np
import pytest

from wikillm.core.errors import DataError
from wikillm.data.sources.sniff import sniff

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345678\n"


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.parquet", "x.csv", "x.txt", "x.json.gz", "x.xml.bz2", "no-name"]
)
@pytest.mark.parametrize("compressed", [False, True])
def test_pointers_of_git_lfs_are_named_under_any_name(tmp_path, name, compressed):
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / name).write_bytes(gzip.compress(LFS) if compressed else LFS)
    for wanted in ("auto", "jsonl", "csv", "text"):
        with pytest.raises(DataError, match="Git LFS pointer") as caught:
            sniff(folder / name, wanted)
    assert caught.value.fix.startswith(f"git -C '{folder}' lfs pull --include {name}\n")


@pytest.mark.parametrize(
    "content", [b"/annex/objects/MD5E-s3--x.jsonl\n", b"../../.git/annex/objects/a/b/x\n"]
)
def test_pointers_of_git_annex_are_named(tmp_path, content):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="git-annex pointer") as caught:
        sniff(tmp_path / "x.jsonl")
    assert caught.value.fix == f"git -C {tmp_path} annex get x.jsonl"


def sqlite() -> bytes:
    with sqlite3.connect(":memory:") as db:
        db.execute("create table t (text)")
        return db.serialize()


BINARY = {
    "pickle": (pickle.dumps([{"text": "a"}]), "pickle files"),
    "SQLite": (sqlite(), "SQLite files"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF files"),
    "ORC": (b"ORC\x0a\x0b", "ORC files"),
    "Avro": (b"Obj\x01\x04\x14avro.codec", "Avro files"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5 files"),
    "NumPy": (b"\x93NUMPY\x01\x00v\x00{'descr'", "NumPy files"),
    "token ids": (np.arange(5000, dtype="<u4").tobytes(), "binary"),
    "random bytes": (random.Random(1).randbytes(5000), "binary"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + random.Random(2).randbytes(5000), "binary"),
    "floats": (struct.pack("<9d", *range(9)) * 50, "binary"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "7z files"),
    "RAR": (b"Rar!\x1a\x07\x01\x00", "RAR files"),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_files_are_named_by_their_kind(tmp_path, name):
    content, message = BINARY[name]
    for file in ("x.jsonl", "x.txt", "x.bin"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            sniff(tmp_path / file)
        assert caught.value.fix
