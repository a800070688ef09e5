"""The command line: find the command, run it, and turn its errors into a message and an exit code.

Each command has a module (`configure(parser)`, `run(args) -> int`), imported only when the command
is chosen. Heavy imports stay inside `run`, so that no `--help` imports torch. Arguments that a
command's parser does not know go into `args.rest`: commands in TAKES_CONFIG read them as
configuration (`train.learning_rate=3e-4`, `--max_steps 50`), all others refuse them. A
`WikiLLMError` is shown without a traceback, and so are errors that `core.faults` attributes to the
machine or to a damaged file. Any other exception is reported as a bug.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from wikillm import __version__
from wikillm.cli.arguments import any_integer, any_number
from wikillm.core.errors import ConfigError, ExitCode, MachineError, WikiLLMError, did_you_mean
from wikillm.core.faults import as_refusal
from wikillm.core.log import drop_output, lost_output, make_output_safe

COMMANDS = {
    "prepare": "Build the token store: documents, tokenizer, tokens.",
    "data": "Inspect a token store: stats, show N, verify, export, import, tokenizer.",
    "plan": "Plan a run on given GPUs: recipe, memory, time, cost. Estimates, without torch.",
    "ladder": "Train small models by the laws of model.depth and predict the loss of a large one.",
    "train": "Train a model, or resume a stopped run.",
    "launch": "Show or start a run here, on many nodes, with Slurm, Kubernetes, SkyPilot, SwanLab.",
    "doctor": "Check this machine, or all nodes of a hostfile, against what a run needs.",
    "alerts": "Send a test message through every channel of a run's `alerts`.",
    "status": "Show what every node and rank of a run is doing, or how it ended.",
    "report": "Write one page about a run: settings, data, curves, samples, faults, cost.",
    "audit": "Prove from files which tokens a run was trained on, or name the first wrong step.",
    "replay": "Recompute a step of a run, to check that its loss follows from its data.",
    "stop": "Stop a run on all its nodes after saving a checkpoint; --now saves none.",
    "eval": "Score a model: validation loss, bits per byte of any text, multiple-choice tasks.",
    "generate": "Complete a text with a trained or exported model.",
    "chat": "Talk to a trained or exported model in the terminal.",
    "serve": "Serve a model over OpenAI's API, with a web page to try it.",
    "export": "Write a run as a standard Hugging Face folder.",
    "config": "Show a run's values and where each comes from, or the JSON Schema of its YAML.",
    "presets": "List the model, data and run presets.",
    "completion": "Print a completion script for bash or zsh.",
    "demo": "Go from a Wikipedia dump to a trained, exported model, in minutes.",
}
"""{command: description}, kept here so that `--help` need not import the commands."""
TAKES_CONFIG = frozenset(
    ["alerts", "config", "doctor", "eval", "ladder", "launch", "plan", "prepare", "train"]
)
"""Commands whose unknown arguments are configuration; other commands refuse them."""

OUTPUT_IS_EXTRA = frozenset(["launch", "train"])
"""Commands whose result is a run; other commands fail if their output cannot be printed."""

EPILOG = """\
Presets, a YAML file and the command line describe a run; later ones override earlier ones:
  wikillm train --config wiki-zh-120m data.path=zhwiki.jsonl train.learning_rate=3e-4 --max_steps 50
  deepspeed train.py --deepspeed ds_configs/zero2.json data.path=zhwiki.jsonl

Exit codes: 0 done, 1 bug, 2 usage or configuration, 3 machine, 4 data, 5 diverged, 6 checkpoint,
75 stopped on request and resumable. `--debug` shows the traceback of any error.
"""
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports
READER_GONE = 141  # 128 + SIGPIPE


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError for mistakes, and checks the range of `int` and `float`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", int, any_integer)
        self.register("type", float, any_number)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}.", fix=f"{self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the help; argparse's own method ignores errors of the output."""
        print(message, end="", file=file)


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `main` and end the process with its exit code, even if daemon threads still run.

    At exit the interpreter ends each daemon thread when the thread next takes the GIL. In a thread
    inside compiled code, such as pydantic's during SwanLab's start, this aborts the process: -6
    instead of 0 or 75.
    """
    code: list[int] = []
    atexit.register(_end_now, code)  # registered first, so it runs after all other handlers
    code.append(main(argv))
    sys.exit(code[0])


def _end_now(code: list[int]) -> None:
    """Flush, and exit with `code` at once if `main` has returned and a daemon thread still runs."""
    if code and any(thread.daemon for thread in threading.enumerate()):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Raises no `Exception`."""
    make_output_safe()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # a closed pipe is handled here, not in the interpreter's shutdown
        return code
    except WikiLLMError as error:
        return _report_refusal(error, debug)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        _print_error("interrupted")
        return INTERRUPTED
    except Exception as error:
        return _report_failure(error, debug)


def _dispatch(words: list[str]) -> int:
    name, words = _split_command(words)
    if name is None:
        print(_top_help())
        asked = any(word in ("-h", "--help") for word in words)
        return ExitCode.DONE if asked else ExitCode.CONFIG
    if name == "--version":
        print(f"wikillm {__version__}")
        return ExitCode.DONE
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        fix = f"wikillm {near}" if near else "one of: " + ", ".join(COMMANDS)
        raise ConfigError(f"There is no command {name!r}.", fix=fix)
    module = importlib.import_module(f"wikillm.cli.{name}")
    parser = _Parser(
        prog=f"wikillm {name}",
        description=COMMANDS[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an abbreviation could match one of Hugging Face's flags
    )
    module.configure(parser)
    try:
        args, rest = parser.parse_known_args(_with_dashes(parser, words))
    except SystemExit:  # argparse ends the process after `--help`
        return ExitCode.DONE
    if rest and name not in TAKES_CONFIG:
        _refuse_unknown_words(parser, rest)
    args.rest = rest
    code = int(module.run(args))
    lost = lost_output()
    if code == ExitCode.DONE and lost is not None and name not in OUTPUT_IS_EXTRA:
        raise lost
    return code


def _with_dashes(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Accept `--master_port`, as other launchers spell it, for `--master-port`."""
    known = {option for action in parser._actions for option in action.option_strings}
    spelled = []
    for word in words:
        flag, equals, value = word.partition("=")
        dashed = flag.replace("_", "-")
        is_other_spelling = flag not in known and dashed in known
        spelled.append(f"{dashed}{equals}{value}" if is_other_spelling else word)
    return spelled


def _split_command(words: list[str]) -> tuple[str | None, list[str]]:
    """(name of the command, the other words). The deepspeed launcher puts `--local_rank=N`
    before the name."""
    for index, word in enumerate(words):
        if word.startswith(("--local_rank", "--local-rank")):
            continue
        if word in ("-h", "--help"):
            return None, words
        if word in ("-V", "--version"):
            return "--version", words
        return word, words[:index] + words[index + 1 :]
    return None, words


def _refuse_unknown_words(parser: argparse.ArgumentParser, rest: list[str]) -> NoReturn:
    known = [option for action in parser._actions for option in action.option_strings]
    word = rest[0].split("=", 1)[0]
    near = did_you_mean(word, known)
    fix = f"did you mean {near}?" if near else f"{parser.prog} --help"
    raise ConfigError(f"{parser.prog} does not know {rest[0]!r}.", got=" ".join(rest), fix=fix)


def _top_help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: wikillm COMMAND [...]    (wikillm COMMAND --help, wikillm --version)", ""]
    lines += [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join([*lines, "", EPILOG.rstrip()])


def _rank_prefix() -> str:
    is_alone = os.environ.get("WORLD_SIZE", "1") in ("", "1")
    return "" if is_alone else f"[rank {os.environ.get('RANK', '0')}] "


def _report_refusal(error: WikiLLMError, debug: bool) -> int:
    """Report a refusal, and return its exit code.

    All ranks have the same configuration, so only one rank per node reports errors in it.
    """
    logging.getLogger("wikillm").error("%s: %s", type(error).__name__, error)
    if debug:
        traceback.print_exc()
    elif not isinstance(error, ConfigError) or os.environ.get("LOCAL_RANK", "0") in ("", "0"):
        _print_error(f"{_rank_prefix()}{type(error).__name__}: {error}")
    return int(error.exit_code)


def _report_failure(error: Exception, debug: bool) -> int:
    """Report an exception that is not a WikiLLMError, and return its exit code.

    The cause is standard output, the machine or a damaged file; otherwise it is a bug.
    """
    lost = lost_output()
    if error is not lost:
        # An OSError without a file may come from a print; a second print shows whether it does.
        lost = _output_failure() if isinstance(error, OSError) and not error.filename else None
    if lost is not None:
        drop_output(1)
        if isinstance(lost, BrokenPipeError):
            return READER_GONE
        error = MachineError(
            "The output is not complete: standard output cannot be written.",
            got=lost.strerror,
            fix="send it to a file on a disk with room",
        )
    refusal = as_refusal(error)
    if refusal is None:
        return _report_bug(error)
    logging.getLogger("wikillm").error("cause of the error below", exc_info=error)
    return _report_refusal(refusal, debug)


def _output_failure() -> OSError | None:
    """Write an empty line to standard output. Returns the error if that fails, else None."""
    try:
        print(flush=True)
    except OSError as error:
        return error
    return None


def _print_error(text: str) -> None:
    """Print to standard error if possible; the exit code reports the result in any case."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        drop_output(2)


def _report_bug(error: Exception) -> int:
    """Print the traceback of a bug and how to report it; the run's log file gets the traceback."""
    logging.getLogger("wikillm").critical("unexpected error", exc_info=error)
    _print_error("".join(traceback.format_exception(error)))
    _print_error(
        f"{_rank_prefix()}bug: {type(error).__name__}: {error}\n"
        "  WikiLLM should have refused this with a clear message, or not have failed.\n"
        f"  fix: report the command, this traceback and the version ({__version__}) as an issue"
    )
    return int(ExitCode.BUG)
