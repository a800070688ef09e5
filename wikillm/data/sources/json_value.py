"""Parse one JSON value, whatever the size of its numbers and the depth of its nesting."""

from __future__ import annotations

import json
import re
from typing import Any

_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)

KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
"""What messages call a value of each type; strings are not listed."""


def parse_json(text: str) -> Any:
    """Like json.loads, but numbers are floats and values nested too deep are null.

    Raises ValueError.
    """
    try:
        return json.loads(text, parse_int=float)  # Python refuses an int of thousands of digits
    except RecursionError:
        pass
    try:
        return json.loads(_outline(text), parse_int=float)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _outline(text: str) -> str:
    """The JSON text with the objects and lists inside its outermost value replaced by null.

    Raises ValueError when the brackets do not close.
    """
    kept: list[str] = []
    depth = begin = 0
    for mark in _STRUCTURE.finditer(text):
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
