"""Every rank of a run gets the same secret; other users get none."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from wikillm.core.errors import ConfigError, MachineError
from wikillm.supervise import secret as secret_module
from wikillm.supervise.secret import FILE_NAME, VARIABLE, run_secret


def test_ranks_that_start_together_get_one_secret(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    found: list[bytes] = []
    start = threading.Barrier(16)

    def rank() -> None:
        start.wait()
        found.append(run_secret(run, {}))

    threads = [threading.Thread(target=rank) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16 and len(set(found)) == 1 and len(found[0]) == 32
    assert stat.S_IMODE((run / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in run.iterdir()] == [FILE_NAME]
    assert run_secret(run, {}) == found[0], "a resumed run keeps it"
    assert run_secret(tmp_path / "runs" / "other", {}) != found[0]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    made = run_secret(tmp_path, {})
    assert run_secret(tmp_path, {}) == made
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_the_environment_has_precedence_and_must_be_long_enough(tmp_path: Path) -> None:
    assert run_secret(tmp_path, {VARIABLE: "0123456789abcdef"}) == b"0123456789abcdef"
    assert not list(tmp_path.iterdir())
    for short in ("", "password"):
        with pytest.raises(ConfigError, match="too short"):
            run_secret(tmp_path, {VARIABLE: short})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    run_secret(tmp_path, {})
    (tmp_path / FILE_NAME).chmod(mode)
    with pytest.raises(MachineError, match="Others can read"):
        run_secret(tmp_path, {})


def test_a_planted_link_pipe_or_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_module, "_READ_SECONDS", 0.2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("0" * 64 + "\n")
    elsewhere.chmod(0o600)
    for name in ("link", "pipe", "short", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / FILE_NAME).symlink_to(elsewhere)
    os.mkfifo(tmp_path / "pipe" / FILE_NAME, 0o600)
    (tmp_path / "short" / FILE_NAME).touch(0o600)
    (tmp_path / "folder" / FILE_NAME).mkdir()
    for name in ("link", "pipe", "short", "folder"):
        with pytest.raises(MachineError, match=r"\.secret"):
            run_secret(tmp_path / name, {})


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot be stored") as caught:
        run_secret(tmp_path / "file" / "run", {})
    assert "run.dir=FOLDER" in str(caught.value.fix)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_that_another_user_planted_is_refused(tmp_path: Path) -> None:
    own = run_secret(tmp_path, {})
    os.chown(tmp_path / FILE_NAME, 65534, -1)
    with pytest.raises(MachineError, match="belongs to another user"):
        run_secret(tmp_path, {})
    os.chown(tmp_path, 65534, -1)  # the folder of that user, or a server that maps root to it
    assert run_secret(tmp_path, {}) == own
