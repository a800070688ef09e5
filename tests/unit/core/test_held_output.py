"""What libraries print while a run starts is held back, and never lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

NOISE = """
import os, sys
from wikillm.core.held_output import held_output
from wikillm.core.log import log_to_file, make_output_safe, say, warn
from pathlib import Path

make_output_safe()
with held_output():
    say("starting   for the user")
    warn("for the user")
    print("python noise")
    sys.stderr.write("more python noise\\n")
    os.write(1, b"noise of C++\\n")
    os.system("echo noise of a child >&2")
"""
HELD = ("python noise", "more python noise", "noise of C++", "noise of a child")


def started(end: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    code = NOISE + "".join(f"    {line}\n" for line in end.splitlines())
    words = [sys.executable, "-c", code, str(tmp_path / "rank_0.log")]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_held_output_is_the_first_entry_of_the_log(tmp_path: Path) -> None:
    done = started("log_to_file(Path(sys.argv[1]))\nsay('trains')\nprint('later')", tmp_path)
    assert done.returncode == 0
    assert done.stdout == "starting   for the user\ntrains\nlater\n"
    assert done.stderr == "warning: for the user\n"
    log = (tmp_path / "rank_0.log").read_text()
    assert all(line in log for line in HELD) and "printed while the run started:\n" in log
    assert log.index("noise of a child") < log.index("trains")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise ImportError('libcudart.so')", 1),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("os.abort()", -signal.SIGABRT),
        ("os._exit(75)", 75),
    ],
)
def test_held_output_is_printed_if_the_start_fails(end: str, code: int, tmp_path: Path) -> None:
    done = started(end, tmp_path)
    assert done.returncode == code
    assert all(done.stderr.count(line) >= 1 for line in HELD), done.stderr
    assert done.stdout == "starting   for the user\n"
    if code == 1:
        assert done.stderr.index("noise of a child") < done.stderr.index("ImportError")


def test_a_caller_that_has_replaced_the_streams_reads_them_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from wikillm.core.held_output import held_output, release_held
    from wikillm.core.log import say

    with held_output():
        say("read by the test")
        assert release_held() == b""
    assert capsys.readouterr().out == "read by the test\n"
