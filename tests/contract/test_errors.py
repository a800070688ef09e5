"""Errors say what is wrong, what was got and what to do; each kind has its exit code, and no
traceback."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from wikillm.core import errors
from wikillm.core.errors import ExitCode, WikiLLMError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, WikiLLMError) and kind is not WikiLLMError
]


def test_all_exit_codes_are_used_and_differ() -> None:
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert set(codes) | {ExitCode.DONE, ExitCode.BUG} == set(ExitCode)


@pytest.mark.parametrize("kind", KINDS)
def test_shape(kind: type[WikiLLMError]) -> None:
    error = kind("It is wrong.", got="this\nand that", fix="do this\nor that")
    assert str(error) == "It is wrong.\n  this\n  and that\n  fix: do this\n       or that"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))


CASES = {
    "unknown command": (["trian"], 2, "did you mean|fix: wikillm train"),
    "missing data": (["prepare", "data.path=/nonexistent/wiki.jsonl"], 4, "/nonexistent"),
    "missing checkpoint": (["export", "/nonexistent/run"], 6, "/nonexistent/run"),
}


@pytest.mark.parametrize("case", CASES)
def test_command_line(case: str) -> None:
    words, code, hint = CASES[case]
    done = subprocess.run(
        [sys.executable, "-m", "wikillm", *words], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert any(part in done.stderr for part in hint.split("|")), done.stderr
    assert "fix:" in done.stderr, done.stderr
