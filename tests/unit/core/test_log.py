"""Rank 0 prints, every rank logs to a file, and a lost terminal never ends a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.terminal import terminal

PROGRAM = """
import sys
from pathlib import Path
from wikillm.core.log import log_to_file, make_output_safe, say, warn
make_output_safe()
log_to_file(Path(sys.argv[1]))
say("步 1", end="!\\n")
warn("careful 一")
"""


def run(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[bytes]:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "logs" / "rank.log")],
        env={**os.environ, **environ},
        capture_output=True,
        timeout=60,
    )


def test_rank_0_prints_and_logs(tmp_path: Path) -> None:
    done = run(tmp_path, RANK="0", PYTHONUTF8="1")
    assert done.stdout.decode() == "步 1!\n"
    assert done.stderr.decode() == "warning: careful 一\n", "not repeated by the logging module"
    log = (tmp_path / "logs" / "rank.log").read_text(encoding="utf-8")
    assert "INFO wikillm: 步 1" in log and "WARNING wikillm: careful 一" in log


def test_other_ranks_only_log(tmp_path: Path) -> None:
    done = run(tmp_path, RANK="3")
    assert (done.stdout, done.stderr) == (b"", b"")
    assert "步 1" in (tmp_path / "logs" / "rank.log").read_text(encoding="utf-8")


def test_characters_that_a_terminal_cannot_encode_are_replaced(tmp_path: Path) -> None:
    done = run(tmp_path, PYTHONUTF8="0", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"? 1!\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_terminal_does_not_end_a_run(tmp_path: Path, stream: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = PROGRAM + "for _ in range(3):\n    say('more')\n    warn('more')\n"
    other = "stderr" if stream == "stdout" else "stdout"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "rank.log")],
        timeout=60,
        **{stream: writing, other: subprocess.PIPE},  # type: ignore[call-overload]
    )
    os.close(writing)
    assert done.returncode == 0
    assert (tmp_path / "rank.log").read_text(encoding="utf-8").count("more") == 6


def test_a_wait_is_one_line_and_counts_seconds_on_a_terminal() -> None:
    program = """
from wikillm.core.log import make_output_safe, timed
make_output_safe()
with timed("importing", every=0.01):
    input()
"""
    command = [sys.executable, "-c", program]
    plain = subprocess.run(command, input="\n", capture_output=True, text=True, timeout=60)
    assert (plain.returncode, plain.stdout) == (0, "importing\n"), plain.stderr
    with terminal() as shown:
        with open(shown.path, "w", encoding="utf-8") as screen:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=screen, text=True)
        shown.wait_for("importing, 0 s\r", count=2)
        process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert shown.text.endswith(" s\r\n")
