"""Numbers on the command line, each refused where it is read when it cannot be what its option means."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def _checked(
    kind: Callable[[str], Number], is_fine: Callable[[Number], bool], what: str
) -> Callable[[str], Number]:
    """An argparse type: `kind`, refused where it is not fine."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {what}") from None
        if not is_fine(value):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {what}")
        return value

    return parse


any_integer = _checked(int, lambda value: abs(value) < 2**63, "a whole number of at most 63 bits")
"""What `type=int` means in every command: torch and numpy take no larger ones."""
any_number = _checked(float, lambda value: abs(value) < float("inf"), "a finite number")
"""What `type=float` means in every command."""
positive = _checked(int, lambda value: 1 <= value < 2**63, "a whole number from 1 on")
index = _checked(int, lambda value: 0 <= value < 2**63, "a whole number from 0 on")
not_negative = _checked(float, lambda value: 0 <= value < float("inf"), "a number from 0 on")
share = _checked(float, lambda value: 0 < value <= 1, "a number above 0 and up to 1")
