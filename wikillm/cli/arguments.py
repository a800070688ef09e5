"""Types and options that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TypeVar

from wikillm.core.units import parse_count, parse_size

Number = TypeVar("Number", int, float)
_WORD = re.compile(r"[A-Za-z0-9][\w.,:@-]{0,127}")


def _checked(
    kind: Callable[[str], Number], is_legal: Callable[[Number], bool], what: str
) -> Callable[[str], Number]:
    """An argparse type that refuses illegal values."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {what}") from None
        if not is_legal(value):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {what}")
        return value

    return parse


def _size_with_unit(text: str) -> int:
    if not text.strip()[-1:].isalpha():
        raise ValueError("a number without a unit")
    return parse_size(text)


any_integer = _checked(int, lambda value: abs(value) < 2**63, "a whole number of at most 63 bits")
"""Replaces `type=int` in every command: torch and numpy take no larger integers."""
any_number = _checked(float, lambda value: abs(value) < float("inf"), "a finite number")
"""Replaces `type=float` in every command."""
positive = _checked(int, lambda value: 1 <= value < 2**63, "a whole number from 1 on")
index = _checked(int, lambda value: 0 <= value < 2**63, "a whole number from 0 on")
not_negative = _checked(float, lambda value: 0 <= value <= 1e9, "a number from 0 to 1e9")
count = _checked(parse_count, lambda value: value > 0, "a number such as 1.2B")
above_0 = _checked(float, lambda value: 1e-6 <= value <= 1e12, "a number from 1e-6 to 1e12")
share = _checked(float, lambda value: 1e-6 <= value <= 1, "a number from 1e-6 to 1")
tflops = _checked(
    float, lambda value: 0.1 <= value <= 100_000, "a dense bf16 peak in TFLOP/s, such as 165"
)
size = _checked(parse_size, lambda value: value > 0, "a size such as 10MB")
memory = _checked(
    _size_with_unit, lambda value: value >= 2**20, "an amount of memory such as 24GiB"
)
hours = _checked(float, lambda value: 0 < value <= 24 * 366, "a number of hours, up to 8,784")
nodes = _checked(int, lambda value: 1 <= value <= 100_000, "a number from 1 to 100,000")
gpus = _checked(int, lambda value: 1 <= value <= 1024, "a number from 1 to 1024")
restarts = _checked(int, lambda value: 0 <= value <= 1000, "a number from 0 to 1000")
seconds = _checked(float, lambda value: 0 < value <= 3600, "a number of seconds up to 3600")
port = _checked(int, lambda value: 1 <= value <= 65535, "a port: 1 to 65535")


def host(text: str) -> str:
    """A DNS name or an IP address, without brackets."""
    from wikillm.remote.hosts import bare_host, is_host

    bare = bare_host(text)
    if not is_host(bare):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a host")
    return bare


def word(text: str) -> str:
    """One word that is safe in a line of a batch file."""
    if not _WORD.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not one word")
    return text


def unicode_text(text: str) -> str:
    """Text for a tokenizer. Python keeps bytes that the terminal's encoding lacks as surrogates."""
    if text != text.encode(errors="ignore").decode():
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not text in the terminal's encoding")
    return text


def folder(text: str) -> str:
    """A path as one word of a command line."""
    if not text.isprintable() or text.startswith("-"):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a folder")
    return text


def add_json(parser: argparse.ArgumentParser, help: str = "print one JSON object") -> None:
    parser.add_argument("--json", action="store_true", help=help)


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="allow pickles, which can run code: only for checkpoints whose author you trust",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    help = "auto, cpu, cuda or cuda:N (default auto)"
    parser.add_argument("--device", default="auto", metavar="NAME", help=help)
