"""The live view of real runs on a pseudo-terminal, and plain lines where it is not wanted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.ranks import run_ranks
from harness.reference import References
from harness.terminal import terminal, train_on_terminal
from harness.tiny_run import Words

from wikillm.cli.main import main

HEADER = "step/max  tokens     loss"
HIDE_CURSOR = "\x1b[?25l"


def test_a_terminal_shows_the_view_and_the_log_keeps_the_lines(
    words: Words, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with terminal() as tty:
        run_ranks(train_on_terminal, 2, words(run), tty.path, "xterm-256color")
    assert re.search(r"step 7/8 .*━.* 88%", tty.text)
    assert re.search(r"loss \d\.\d{4}  [▁▂▃▄▅▆▇█]{7}", tty.text)
    assert re.search(r"tokens/s  wait \d+%  memory [\d.]+ MiB", tty.text)
    assert "next save at step 4" in tty.text and "next save at step 8" in tty.text
    assert HEADER not in tty.text and HIDE_CURSOR not in tty.text
    # What the run says besides stands above the view, once.
    for line in (r"engine     ", r"validation at step 8: ", r"done       8 steps"):
        assert len(re.findall(line, tty.text)) == 1, line
    log = (run / "logs" / "rank_0.log").read_text()
    assert HEADER in log and re.search(r" 8/8 ", log)


@pytest.mark.parametrize(("term", "live"), [("dumb", "auto"), ("xterm", "off")])
def test_a_terminal_that_cannot_or_shall_not_gets_lines(
    words: Words, tmp_path: Path, term: str, live: str
) -> None:
    with terminal() as tty:
        given = words(tmp_path / "run", f"observe.live={live}")
        run_ranks(train_on_terminal, 1, given, tty.path, term)
    assert HEADER in tty.text and re.search(r" 8/8 ", tty.text)
    assert "\x1b" not in tty.text


def test_a_run_is_followed_from_its_files(
    references: References, capsys: pytest.CaptureFixture[str]
) -> None:
    run = references(2)["folder"]
    assert main(["status", str(run), "--follow"]) == 0
    lines = capsys.readouterr().out
    assert HEADER in lines and re.search(r" 8/8 ", lines)
    assert lines.index("8/8") < lines.index("state      done")
    with terminal() as tty:
        command = [sys.executable, "-m", "wikillm", "status", str(run), "--follow"]
        environ = {"TERM": "xterm", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path.cwd())}
        out = subprocess.run(
            command, env=environ, stdin=tty.slave, stdout=tty.slave, stderr=tty.slave, timeout=120
        )
        assert out.returncode == 0
    assert "step 8/8" in tty.text and "state      done" in tty.text
