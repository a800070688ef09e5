"""The entry: which command runs, what becomes of unknown words, and how every kind of ending
leaves the process."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from wikillm.cli import main as entry
from wikillm.cli.main import COMMANDS, TAKES_CONFIG, main
from wikillm.core.errors import DivergedError, ExitCode

Run = Callable[[argparse.Namespace], int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run, bool], None]:
    """Registers a command `try` whose `run` is the given function."""

    def register(run: Run, takes_config: bool = True) -> None:
        module = types.ModuleType("wikillm.cli.try")
        module.configure = lambda parser: parser.add_argument("--number", type=int, help="a number")  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "wikillm.cli.try", module)
        monkeypatch.setitem(COMMANDS, "try", "Try.")
        added = {"try"} if takes_config else set()
        monkeypatch.setattr(entry, "TAKES_CONFIG", TAKES_CONFIG | added)

    return register


def test_unknown_words_are_kept_in_order(command: Callable[..., None]) -> None:
    seen: list[argparse.Namespace] = []
    command(lambda args: seen.append(args) or 0)
    words = ["train.learning_rate=3e-4", "--max_steps", "50", "--num", "7", "--bf16"]
    assert main(["--local_rank=1", "try", "--number", "3", *words]) == 0
    assert seen[0].number == 3
    assert seen[0].rest == ["--local_rank=1", *words], "abbreviations are not expanded"


def test_commands_without_configuration_refuse_unknown_words(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(lambda args: pytest.fail("it must not run"), False)
    assert main(["try", "--numbr", "3"]) == ExitCode.CONFIG
    assert "did you mean --number?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (
            DivergedError("The loss is NaN.", fix="train.learning_rate=1e-4"),
            5,
            "DivergedError: The loss is NaN.\n  fix: ",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(28, "No space left on device", "runs/a"),
            3,
            "MachineError: There is no room left",
        ),
        (PermissionError(13, "Permission denied", "runs/a"), 3, "runs/a: Permission denied"),
        (
            RuntimeError("Error while deserializing header: header too small"),
            6,
            "CheckpointError: ",
        ),
        (BrokenPipeError(32, "Broken pipe"), 3, "MachineError: The network"),
        (ZeroDivisionError("by zero"), 1, "bug: ZeroDivisionError: by zero"),
    ],
    ids=["refusal", "ctrl-c", "full disk", "denied", "damaged file", "a worker's pipe", "bug"],
)
def test_each_kind_of_error_has_its_message_and_exit_code(
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    shown: str,
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    command(run)
    assert main(["try"]) == code
    err = capsys.readouterr().err
    assert shown in err
    assert ("Traceback" in err) == isinstance(error, ZeroDivisionError), (
        "only a bug shows its traceback"
    )
    assert main(["--debug", "try"]) == main(["try", "--debug"]) == code
    assert capsys.readouterr().err.count("Traceback") == 2


def test_a_bug_reaches_the_log_file(command: Callable[..., None], tmp_path: Path) -> None:
    from wikillm.core.log import log_to_file, logger

    def run(args: argparse.Namespace) -> int:
        raise ZeroDivisionError("by zero")

    command(run)
    log_to_file(tmp_path / "rank_0.log")
    try:
        main(["try"])
    finally:
        logger.removeHandler(logger.handlers[-1])
        logger.propagate = True
    assert "Traceback" in (tmp_path / "rank_0.log").read_text()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_rank_of_a_node_reports_a_wrong_configuration_and_each_rank_other_errors(
    command: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise DivergedError("The loss is NaN.")

    command(run)
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["presets", "--nope"]) == ExitCode.CONFIG
    assert ("[rank 0] ConfigError" in capsys.readouterr().err) == (rank == "0")
    main(["try"])
    assert capsys.readouterr().err.startswith(f"[rank {rank}] DivergedError")


def test_bare_call_shows_help_but_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.CONFIG
    assert main(["--help"]) == ExitCode.DONE
    first, second = capsys.readouterr().out.split("usage:")[1:]
    assert first == second


def test_nearest_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exprot"]) == ExitCode.CONFIG
    assert "fix: wikillm export" in capsys.readouterr().err
    assert main(["xyzzy"]) == ExitCode.CONFIG
    assert "one of: prepare, " in capsys.readouterr().err


def test_a_closed_pipe_ends_a_command_without_a_traceback() -> None:
    """`wikillm presets | head -0`: no traceback, the code of a process that SIGPIPE ended."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "wikillm", "presets", "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


CLOSED, FULL = "closed", "full"


@pytest.mark.parametrize(
    ("words", "out", "err", "code"),
    [
        (["presets", "--json"], FULL, None, 3),
        (["presets"], FULL, FULL, 3),
        (["generate", "--help"], FULL, None, 3),
        (["presets"], CLOSED, None, 0),
        (["presets"], None, FULL, 0),
        (["presets"], CLOSED, CLOSED, 0),
        (["nosuch"], None, FULL, 2),
        (["nosuch"], FULL, CLOSED, 2),
    ],
)
def test_a_result_that_cannot_be_printed_is_an_error(
    words: list[str], out: str | None, err: str | None, code: int
) -> None:
    """The answer is missing where it was to go: 3. A caller that closed it wants none."""
    redirect = {CLOSED: "{}>&-", FULL: "{}>/dev/full"}
    shell = " ".join(redirect[how].format(number) for number, how in ((1, out), (2, err)) if how)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "wikillm", *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if code == 3 and err is None:
        assert "standard output cannot be written" in done.stderr


@pytest.mark.parametrize(
    ("command", "output", "code"),
    [("presets", "> /dev/full", 3), ("train", "> /dev/full", 0), ("presets", "| true", 141)],
)
def test_a_result_after_lost_progress_lines_is_lost_too(
    command: str, output: str, code: int
) -> None:
    """`say` discards the output that it cannot print. Only a run is complete without it."""
    script = f"""
import time, wikillm.cli.presets, wikillm.cli.train
from wikillm.cli.main import program
from wikillm.core.log import say

def run(args):
    time.sleep(0.5)
    say("progress")
    print("the result")
    return 0

wikillm.cli.{command}.run = run
program(["{command}"])
"""
    shell = f'"$0" -c "$1" {output}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", shell, sys.executable, script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert ("standard output cannot be written" in done.stderr) == (code == 3), done.stderr


ODD_NUMBERS = {
    "eval --batch-size": ["0", "-1", "99999999999999999999", "1.5", ""],
    "generate --seed": ["99999999999999999999", "9" * 5000],
    "generate --temperature": ["nan", "inf", "-1", "1e999", "1e308"],
    "stop --wait": ["nan", "-1", "inf"],
    "plan --gpus-per-node": ["0", "9223372036854775807"],
    "plan --mfu": ["nan", "inf", "0", "2", "1e-320"],
    "plan --storage": ["0", "1e-320", "1e308"],
    "launch slurm --hours": ["nan", "inf", "0", "-1"],
    "data show --sample --sequence-length": ["0", "-1", "99999999999999999999"],
}


@pytest.mark.parametrize("option", ODD_NUMBERS)
def test_a_number_that_cannot_be_meant_is_refused_by_name(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ODD_NUMBERS[option]:
        name, *rest, flag = option.split()
        place = ["x"] if name in ("eval", "generate", "stop") else ["0"] if name == "data" else []
        more = ["--print"] if name == "launch" else []
        assert main([name, *rest, *place, *more, f"{flag}={value}"]) == ExitCode.CONFIG, (
            option,
            value,
        )
        err = capsys.readouterr().err
        assert flag in err and len(err) < 500, err


def test_a_prompt_that_is_not_text_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A byte that the terminal's encoding does not have."""
    assert main(["generate", "x", "--prompt", "a\udcff"]) == ExitCode.CONFIG
    assert "--prompt: 'a\\udcff' is not text" in capsys.readouterr().err


def test_a_daemon_thread_below_compiled_code_does_not_abort_the_exit() -> None:
    """Like SwanLab's client, whose start uses pydantic's validators, written in Rust."""
    script = """
import atexit, sys, threading, time
from typing import Annotated
from pydantic import BaseModel, BeforeValidator
from wikillm.cli import main as entry

began = threading.Event()

def validate(value):
    began.set()
    time.sleep(0.2)
    return value

class Settings(BaseModel):
    value: Annotated[int, BeforeValidator(validate)]

class Slow:
    def __del__(self):
        time.sleep(1)  # the interpreter still ends while the thread wants to go on

def main(argv):
    threading.Thread(target=Settings, kwargs=dict(value=1), daemon=True).start()
    began.wait()
    sys.kept = Slow()
    atexit.register(print, "the exit functions ran")
    return 75

entry.main = main
entry.program()
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert child.returncode == 75, child.stderr
    assert child.stdout == "the exit functions ran\n"
