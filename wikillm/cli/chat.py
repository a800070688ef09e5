"""`wikillm chat MODEL`: a conversation in the terminal, or lines of standard input."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wikillm.cli.arguments import add_device, add_trust
from wikillm.cli.generate import add_sampling, open_model, say_loading
from wikillm.core.errors import ConfigError

if TYPE_CHECKING:
    from wikillm.generate.chat import Conversation

EPILOG = """
examples:
  wikillm chat exports/wiki-zh-120m-500
  echo "从前" | wikillm chat runs/demo --temperature 0
A model with a chat template (wikillm export --chat-template) answers messages and remembers them.
A model without one is a base model: it continues each line; an empty line continues the last text.
Each line is one message. /reset forgets the conversation; /exit or Ctrl-D leaves. Ctrl-C stops an
answer; a second Ctrl-C leaves.
"""
_BASE = "This is a base model: it continues your text; it does not answer questions."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    help = "an exported model, a run directory or a checkpoint"
    parser.add_argument("folder", metavar="MODEL", help=help)
    add_sampling(parser, default_new_tokens=256)
    add_device(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    say_loading(args.folder)
    from wikillm.data.tokenizer.chat_template import read_chat_template
    from wikillm.generate.chat import Conversation
    from wikillm.generate.complete import Sampling
    from wikillm.generate.load import is_model_folder

    folder = Path(args.folder)
    loaded = open_model(folder, args.device, trust=args.trust_checkpoint)
    # A run was trained on plain text, so the chat template of its tokenizer is not used.
    template = read_chat_template(folder) if is_model_folder(folder) else None
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    conversation = Conversation(loaded, sampling, template)
    is_terminal = sys.stdin.isatty()
    if template is None:
        _note(_BASE)
    if is_terminal:
        _note("Ctrl-C stops an answer; /reset forgets the conversation; /exit or Ctrl-D leaves.")
        with suppress(ImportError):
            import readline  # noqa: F401  # `input` then edits lines and keeps a history
    with suppress(AttributeError, ValueError):
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for line in _lines("> " if is_terminal and sys.stdout.isatty() else ""):
        if line == "/exit":
            break
        if line == "/reset":
            conversation.reset()
            _note("Started a new conversation.")
        elif not _say(conversation, line, is_terminal):
            break
    return 0


def _lines(prompt: str) -> Iterator[str]:
    """Lines of the user until the input ends, or until a second Ctrl-C at the prompt."""
    is_warned = False
    while True:
        try:
            line = input(prompt)
        except EOFError:
            if prompt:
                print()
            return
        except KeyboardInterrupt:
            print()
            if is_warned:
                return
            is_warned = True
            _note("Ctrl-C again, or Ctrl-D, leaves.")
            continue
        is_warned = False
        yield line.strip()


def _say(conversation: Conversation, line: str, is_terminal: bool) -> bool:
    """Print what the model writes after `line`; False when the user leaves."""
    is_base = conversation.template is None
    if not line and not (is_base and conversation.text):
        return True
    if is_base and not is_terminal:
        print(line, end="", flush=True)
    try:
        with _stoppable() as stopped:
            write: Any = partial(print, end="", flush=True)
            answer = conversation.answer(line, write, lambda: bool(stopped))
        print()
    except KeyboardInterrupt:
        print()
        return False
    except ConfigError as error:
        if not is_terminal:
            raise
        _note(str(error))
        return True
    if answer.left_out:
        _note(f"Left out the {answer.left_out} oldest messages: they exceed the model's context.")
    return True


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Inside the block, append the first SIGINT to the list; raise KeyboardInterrupt on the
    second."""
    stopped: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _note(text: str) -> None:
    """Notes go to standard error, so that standard output holds the model's text alone."""
    print(text, file=sys.stderr, flush=True)
