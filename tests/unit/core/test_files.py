"""Files are old or new, never half; digests and listings do not depend on the machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from wikillm.core import files
from wikillm.core.files import (
    files_below,
    read_object,
    read_regular,
    read_tail,
    sha256_file,
    write_atomic,
    write_json,
)


def test_write_replaces_and_leaves_no_staging(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "一")
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_crash_before_the_rename_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def crash(source: Path, target: Path) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(files, "rename_durably", crash)
    with pytest.raises(OSError, match="power cut"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_json_is_utf8_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"名": [1, None]})
    assert "名" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert "名" in (tmp_path / "a.json").read_text(encoding="utf-8"), "the old file must survive"


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1])
def test_sha256_over_piece_borders(tmp_path: Path, size: int) -> None:
    content = (b"wikillm!" * (size // 8 + 1))[:size]
    (tmp_path / "f").write_bytes(content)
    sizes: list[int] = []
    assert sha256_file(tmp_path / "f", sizes.append) == hashlib.sha256(content).hexdigest()
    assert sum(sizes) == size


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_a_planted_file_neither_blocks_its_reader_nor_fills_the_memory(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "exit.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(files.MAX_BYTES + 1)
    assert read_object(path) == {}
    with pytest.raises(OSError, match=r"exit\.json"):
        read_regular(path)


def test_the_tail_of_a_file_is_its_last_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\nlast\n")
    assert (read_tail(path, 5), read_tail(path, 100)) == (b"last\n", b"first\nlast\n")


def test_files_below_is_sorted_and_has_only_files(tmp_path: Path) -> None:
    for name in ("b/2", "a", "b/1", "b.x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)]
    assert found == ["a", "b/1", "b/2", "b.x"]
