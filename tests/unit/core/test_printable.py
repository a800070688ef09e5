"""Text from outside reaches a terminal as text: no escapes, no overwriting, no reversed text."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.cli.main import main
from wikillm.core.log import log_to_file, logger, make_output_safe, say, warn
from wikillm.core.printable import PrintableStream, printable

_RANGES = [(0, 0x20), (0x7F, 0xA0), (0x202A, 0x202F), (0x2066, 0x206A), (0xD800, 0xD801)]
CONTROLS = [chr(c) for a, b in _RANGES for c in range(a, b) if chr(c) not in "\t\n"]
ORDINARY = [
    "",
    "plain",
    "tab\tand\nlines",
    "漢字，ñ é ü",
    "👩‍👩‍👧‍👦 🇨🇳 ☔️",
    "שלום \u200f مرحبا\u200e",
    "a\u00a0b\u3000c\u200b",
    "\ufeffx",
    "𠀀",
]


def test_control_characters_are_escaped_and_all_other_text_stays() -> None:
    assert [printable(text) for text in ORDINARY] == ORDINARY
    for character in CONTROLS:
        assert printable(f"a{character}b") == f"a\\u{ord(character):04x}b"
    assert printable("deleted nothing\rdone") == "deleted nothing\\u000ddone"
    assert printable("one\r\ntwo\r\n") == "one\ntwo\n"
    assert printable("\x1b]0;title\x07\x9b31m") == "\\u001b]0;title\\u0007\\u009b31m"


@given(st.text())
def test_escaped_json_keeps_its_meaning(text: str) -> None:
    shown = printable(json.dumps({"text": text}, ensure_ascii=False))
    assert json.loads(shown) == {"text": text}
    assert not any(character in shown for character in CONTROLS)


def test_standard_streams_escape_the_output_of_commands_and_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Output of commands, libraries and argparse; progress lines on stderr keep their returns."""
    out = io.StringIO()
    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    make_output_safe()
    make_output_safe()  # once is enough
    assert isinstance(sys.stdout, PrintableStream) and sys.stdout.wrapped is out
    print("\x1b[2Jname", end="")
    print("\rover", end="\r")
    sys.stdout.writelines(["\x9b", "ok\n"])
    say("step 1\x07", end="\r")
    warn("a\x1bb")
    print("\r 50%|\x1b[A", end="\r", file=sys.stderr)
    assert out.getvalue() == "\\u001b[2Jname\\u000dover\\u000d\\u009bok\nstep 1\\u0007\r"
    assert err.getvalue() == "warning: a\\u001bb\n\r 50%|\\u001b[A\r"


def test_log_files_hold_no_control_characters(tmp_path: Path) -> None:
    before = logger.handlers[:]
    try:
        log_to_file(tmp_path / "logs" / "rank_0.log")
        logger.info("read %s", "\x1b[8mhidden\u202e")
        try:
            raise ValueError("\x1b]52;c;AAAA\x07")
        except ValueError:
            logger.exception("failed")
    finally:
        for handler in [handler for handler in logger.handlers if handler not in before]:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
    text = (tmp_path / "logs" / "rank_0.log").read_text()
    assert "\\u001b[8mhidden\\u202e" in text and "\\u001b]52;c;AAAA\\u0007" in text
    assert not any(character in text for character in CONTROLS)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "data.path=/nowhere/\x1b[2J\x9b.jsonl"],
        ["data", "stats", "--store", "/nowhere/\x1b]0;x\x07"],
        ["status", "/nowhere/\x1b[31m"],
        ["train", "model.\x1b[31m=1"],
        ["\x1b[31m"],
        ["plan", "--gpu", "\x1b[31m"],
        ["train", "--\x1b[31m"],
    ],
    ids=lambda words: ascii(" ".join(words)),
)
def test_error_messages_escape_control_characters(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) not in (0, 1)
    captured = capfd.readouterr()
    shown = captured.out + captured.err
    assert ("\\u" in shown or "\\x1b" in shown) and not any(
        character in shown for character in CONTROLS
    )
