"""Writes argument lists as shell text, every word quoted, and mappings as YAML."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

WIDTH = 110


def quoted(argv: Sequence[str], *, tail: str = "") -> str:
    """`argv` for a script, wrapped; `tail` is shell text behind the last word, such as `"$@"`."""
    lines: list[str] = []
    line = ""
    for word in [*map(shlex.quote, argv), *([tail] if tail else [])]:
        if line and len(line) + len(word) + 3 > WIDTH:
            lines.append(line + " \\")
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def script(comments: Sequence[str], body: Sequence[str]) -> str:
    """A bash script that stops at the first failure."""
    head = ["#!/usr/bin/env bash"]
    head += [f"# {line}" for comment in comments for line in comment.splitlines()]
    return "\n".join([*head, "set -euo pipefail", *body]) + "\n"


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and text of several lines as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(head: list[str], value: dict[str, Any]) -> str:
    body = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
    return "\n".join(head) + "\n" + body
