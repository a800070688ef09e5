"""One JSON value from text, whatever the size of the numbers in it and however deep it is nested."""

from __future__ import annotations

import json
import re
from typing import Any

_TEXT_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def outline(text: str) -> str:
    """A JSON object with null for each object or list in it: for one that is nested too deep to be parsed.

    Raises ValueError when its brackets do not close.
    """
    kept: list[str] = []
    depth = begin = 0
    for mark in _TEXT_STRUCTURE.finditer(text):
        if mark[0] in "[{":
            depth += 1
            if depth == 2:
                kept.append(text[begin : mark.start()])
        elif mark[0] in "]}":
            depth -= 1
            if depth == 1:
                kept.append("null")
                begin = mark.end()
    if depth:
        raise ValueError("nested deep, and not closed")
    return "".join([*kept, text[begin:]])


def parse_json(text: str) -> Any:
    """As json.loads; every number is a float, and what is nested too deep for Python is null. Raises ValueError."""
    try:
        return json.loads(text, parse_int=float)  # Python refuses an int of thousands of digits
    except RecursionError:
        pass
    try:
        return json.loads(outline(text), parse_int=float)
    except RecursionError:
        raise ValueError("nested too deep") from None
