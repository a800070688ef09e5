"""Writes argument lists as shell text, every word quoted, and mappings as YAML."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from wikillm.core.errors import ConfigError
from wikillm.observe.redact import environment_secrets, redact_text

WIDTH = 110
_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters, and the characters besides the line feed that end a line in YAML."""


def command_line(words: Sequence[str]) -> str:
    """A command as one line without secrets, for a comment in a script.

    Raises ConfigError for characters that a script or a YAML file cannot contain.
    """
    text = shlex.join(words)
    if found := _UNWRITABLE.search(text):
        raise ConfigError(
            "A script cannot hold this character.",
            got=f"U+{ord(found[0]):04X} in {next(word for word in words if found[0] in word)!r}",
            fix="rename the file, or write the value into a YAML file: --config FILE",
        )
    return redact_text(text.replace("\n", "\\n"), environment_secrets())


def quoted(argv: Sequence[str], *, tail: str = "") -> str:
    """`argv` for a script, quoted and wrapped. `tail`: shell text behind it, such as `"$@"`."""
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
    """A YAML file of `value` that begins with the lines `head`."""
    body = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
    return "\n".join(head) + "\n" + body
