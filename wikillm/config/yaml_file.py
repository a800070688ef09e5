"""Read strict YAML, and keep the line number of every value.

The input is a file or a text, the output a flat mapping of dotted key -> `Entry(value, line)`.
Scalars follow YAML 1.2, not PyYAML's 1.1: `1e-4` and `3e8` are numbers, `no`, `on` and `1:30` are
text, `012` is twelve. Duplicate keys, aliases (which allow exponential expansion), tags and several
documents are refused with file and line. A file has at most 1 MiB and 20 levels. The values are
not validated here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wikillm.core.errors import ConfigError

MAX_BYTES = 2**20
MAX_DEPTH = 20

_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and its line number (from 1). A mapping has the value None; its keys have entries."""

    value: Any
    line: int
    is_mapping: bool = False


class _Refused(Exception):
    def __init__(self, what: str, line: int, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.line = line
        self.fix = fix


class _NodeLoader(yaml.SafeLoader):
    """Compose nodes without resolving scalars; refuse aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            what = "Aliases (*name) are not supported."
            raise _Refused(what, self._next_line(), "write the value out")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Refused(f"Nested deeper than {MAX_DEPTH} levels.", self._next_line())
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _next_line(self) -> int:
        return int(self.peek_event().start_mark.line) + 1  # type: ignore[no-untyped-call]


def read_yaml(path: Path) -> dict[str, Entry]:
    """The entries of a YAML file in order, by dotted key. Raises ConfigError with `file:line`."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError("A configuration file is larger than 1 MiB.", got=str(path))
        text = data.decode("utf-8-sig")
    except OSError as error:
        got = f"{path}: {error.strerror}"
        raise ConfigError("A configuration file cannot be read.", got) from None
    except UnicodeDecodeError as error:
        got = f"{path}: byte {error.start}"
        raise ConfigError("A configuration file is not UTF-8.", got) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> dict[str, Entry]:
    """Like `read_yaml`, but from text; messages use `name` as the name of the file."""
    try:
        node = _compose(text)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise _Refused("A configuration must be a mapping of keys to values.", _line(node))
        entries: dict[str, Entry] = {}
        for key, entry in _flatten(node, ""):
            if key in entries:
                fix = f"it is also on line {entries[key].line}; keep one"
                raise _Refused(f"{key} appears twice.", entry.line, fix)
            entries[key] = entry
    except _Refused as refused:
        raise ConfigError(refused.what, got=f"{name}:{refused.line}", fix=refused.fix) from None
    return entries


def parse_value(text: str) -> Any:
    """One value in YAML's flow style, as written after `=` on the command line: `[a, "b, c"]`,
    `3e8`, `no`.

    Raises ValueError when it is not YAML.
    """
    try:
        node = _compose(text)
        return None if node is None else _value(node)
    except _Refused as refused:
        raise ValueError(refused.what) from None


def _compose(text: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _NodeLoader(text)  # the reader already refuses control characters
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise _Refused(f"This is not YAML: {reason}.", mark.line + 1 if mark else 1) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"This is not YAML: the character U+{error.character:04X} is not allowed."
        raise _Refused(what, line) from None
    finally:
        if loader is not None:
            loader.dispose()


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _items(node: yaml.MappingNode) -> Iterator[tuple[str, int, yaml.Node]]:
    """(key, line of the key, value) of each item of a mapping."""
    _refuse_tag(node)
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.value:
            raise _Refused("A key must be a word.", _line(key))
        yield key.value, _line(key), value


def _flatten(mapping: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, Entry]]:
    for name, line, node in _items(mapping):
        key = prefix + name
        if isinstance(node, yaml.MappingNode):
            yield key, Entry(None, line, is_mapping=True)
            yield from _flatten(node, key + ".")
        else:
            yield key, Entry(_value(node), line)


def _value(node: yaml.Node) -> Any:
    _refuse_tag(node)
    if isinstance(node, yaml.SequenceNode):
        items = node.value
        return [_record(i) if isinstance(i, yaml.MappingNode) else _value(i) for i in items]
    if not isinstance(node, yaml.ScalarNode):
        raise _Refused("A mapping is not allowed here.", _line(node))
    if node.style is not None:  # quoted or block text
        return str(node.value)
    return _scalar(node.value)


def _record(mapping: yaml.MappingNode) -> dict[str, Any]:
    """A mapping that is an item of a list."""
    found: dict[str, Any] = {}
    for name, line, node in _items(mapping):
        if name in found:
            raise _Refused(f"{name} appears twice.", line, "keep one")
        found[name] = _value(node)
    return found


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        # int() raises beyond 4300 digits, and no setting needs 100: the schema refuses the text.
        return int(text) if len(text) <= 100 else text
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _refuse_tag(node: yaml.Node) -> None:
    if node.tag not in _PLAIN_TAGS:
        what = f"Tags are not supported: {node.tag}"
        raise _Refused(what, _line(node), "quote the value to make it text")
