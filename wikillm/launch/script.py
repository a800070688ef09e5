"""Argument lists as shell text: every word quoted, one option per line where it gets long."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

WIDTH = 110


def quoted(argv: Sequence[str], *, indent: str = "  ", tail: str = "") -> str:
    """`argv` for a script; `tail` is shell text behind the last word, such as `"$@"`."""
    lines, line = [], ""
    for word in [*map(shlex.quote, argv), *([tail] if tail else [])]:
        if line and len(line) + len(word) + 3 > WIDTH:
            lines.append(line + " \\")
            line = indent + word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def script(comments: Sequence[str], body: Sequence[str]) -> str:
    """A bash script that stops at the first failure."""
    head = [
        "#!/usr/bin/env bash",
        *(f"# {line}" for comment in comments for line in comment.splitlines()),
    ]
    return "\n".join([*head, "set -euo pipefail", *body]) + "\n"
