"""A resolved configuration, and its text forms: a table, and a YAML file that loads to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from wikillm.config.keys import all_keys, flat
from wikillm.config.origin import LAYERS, Origin
from wikillm.config.schema import RunConfig


@dataclass(frozen=True, slots=True)
class Resolved:
    """A run's configuration, and the origin of the value of every dotted key."""

    config: RunConfig
    origins: Mapping[str, Origin]


def to_yaml(resolved: Resolved) -> str:
    """Every key with its origin as a comment; `load(FILE).config` equals `resolved.config`.

    `layers` records the layer (default, preset, file or command line) of every key: a run may
    adjust a value of a preset, such as the warm-up to a short horizon, but not a value of the user.
    So a run from this file adjusts the same keys.
    """
    lines = ["# Every value of this run, with its origin. Usable as --config."]
    open_sections: list[str] = []
    for name, value in flat(resolved.config).items():
        *sections, leaf = name.split(".")
        shared = sum(1 for a, b in zip(sections, open_sections, strict=False) if a == b)
        for depth in range(shared, len(sections)):
            lines.append(f"{'  ' * depth}{sections[depth]}:")
        open_sections = sections
        line = f"{'  ' * len(sections)}{leaf}: {_scalar(value)}"
        origin = resolved.origins[name]
        comment = "" if origin.layer == "default" else f"  # {_printable(str(origin))}"
        lines.append(line + comment)
    lines.append("layers:")
    for layer in LAYERS:
        keys = [name for name, origin in resolved.origins.items() if origin.layer == layer]
        lines.append(f"  {layer}: [{', '.join(keys)}]")
    return "\n".join(lines) + "\n"


def to_rows(resolved: Resolved) -> list[tuple[str, str, str]]:
    """(dotted key, value in its typed form, origin) for every key, in the schema's order."""
    values = flat(resolved.config)
    return [(name, typed_form(values[name]), str(resolved.origins[name])) for name in all_keys()]


def typed_form(value: Any) -> str:
    """A value in the form that is typed after `=` on the command line."""
    if isinstance(value, str) and value and all(ch.isprintable() for ch in value):
        return value
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        fields = value.model_dump(exclude_defaults=True)
        return "{" + ", ".join(f"{name}: {_scalar(part)}" for name, part in fields.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    if isinstance(value, (int, float)):
        is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
        return str(int(value)) if is_whole else repr(value)
    return '"' + "".join(map(_escape, str(value))) + '"'


def _escape(ch: str) -> str:
    """A character inside double quotes in YAML, which accepts JSON's escapes."""
    if ch.isprintable() and ch not in '"\\':
        return ch
    return json.dumps(ch)[1:-1] if ch < "\U00010000" else f"\\U{ord(ch):08x}"


def _printable(text: str) -> str:
    return "".join(ch if ch.isprintable() else " " for ch in text)
