"""Diagnose JSON that gives no text: the mistake, and a command that repairs the file."""

from __future__ import annotations

import ast
import json
import re
import shlex
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from wikillm.data.sources.json_value import parse_json

HOW_TO_WRITE_JSON = 'write {"text": "..."} on each line (JSON Lines), or one array of such objects'
_LITERAL_BYTES = 1 << 16  # longest line that is tried as a Python literal
_RECORDS = re.compile(
    r'\{[^\[\]{}]*"([^"]+)"\s*:\s*(?:\{[^\[\]{}]*"([^"]+)"\s*:\s*)?\[\s*\{(?!\s*\})'
)
"""The start of an object that holds its records in a list, at most two keys deep."""
_PYTHON = "python3 -c 'import ast, json, sys; "
_PYTHON_LINES = _PYTHON + "[print(json.dumps({})) for line in sys.stdin if line.strip()]'"
_PYTHON_ARRAY = _PYTHON + "print(json.dumps(ast.literal_eval(sys.stdin.read())))'"
_DIALOGUES = ("instruction", "input", "prompt", "question", "query", "context")
_ANSWERS = ("output", "response", "completion", "answer", "chosen")

_LINE_MISTAKES: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    (
        "Each line of a file ends with a comma, which JSON Lines does not allow",
        lambda line: parse_json(line.removesuffix(",")),
        "sed 's/,[[:space:]]*$//'",
    ),
    (
        "The lines of a file have characters before their JSON objects",
        lambda line: parse_json(line[line.index("{") :]),
        "sed 's/^[^{]*//'",
    ),
    (
        "The strings of a file hold control characters, which JSON wants escaped",
        lambda line: json.loads(line, strict=False),
        _PYTHON_LINES.format("json.loads(line, strict=False)"),
    ),
    (
        "A file holds Python dicts, not JSON: single quotes, None, True, or commas before brackets",
        lambda line: ast.literal_eval(line[:_LITERAL_BYTES].removesuffix(",")),
        _PYTHON_LINES.format('ast.literal_eval(line.strip().rstrip(","))'),
    ),
)
"""For each mistake in a line: its description, a function that parses such a line, the command that
repairs the file."""


def mistake_in(text: str, is_array: bool = False) -> tuple[str, str]:
    """The mistake in a file whose records are not JSON objects, and a command that repairs it.

    `text` is the beginning of the file; with `is_array`, the first record of an array. The command
    is empty for an unknown mistake.
    """
    if is_array:
        if _is_object(ast.literal_eval, text):
            return _LINE_MISTAKES[-1][0], _PYTHON_ARRAY
        return "None of the first records is a JSON object", ""
    # A mistake in each line: look at the first bad line.
    lines = (line.strip(" \t\r") for line in text.split("\n")[:10])
    bad_line = next((line for line in lines if line and not _is_object(parse_json, line)), "")
    for what, parse, command in _LINE_MISTAKES:
        if _is_object(parse, bad_line):
            return what, command
    # One object around all records; `_RECORDS` recognizes it even if `text` ends within it.
    try:
        first, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        first = None
    if found := _RECORDS.match(text):
        path = _jq_path(*filter(None, found.groups()))
    else:
        path = _path_of_list(first) if isinstance(first, dict) else ""
    if path:
        return "A file is one JSON object around its records", f"jq -c {shlex.quote(path + '[]')}"
    if isinstance(first, dict):
        return "A JSON object is on several lines, or several are on one line", "jq -c ."
    return "A file begins like JSON, but most of its first lines are not JSON objects", ""


def _is_object(parse: Callable[[str], Any], text: str) -> bool:
    """Whether `parse` makes an object of the text, instead of raising an error."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about escapes in Python literals
            return isinstance(parse(text), dict)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, IndexError, KeyError):
        return False


def command_for_text(values: Sequence[Any], key: str, is_array: bool) -> str:
    """A command that writes records with a string under `key`; empty if none is known.

    `values` are the first records. The command is of use only if none has a string under `key`.
    """
    each = ".[] | " if is_array else ""
    jq_filter = _filter_for(values, key)
    return f"jq -c {shlex.quote(each + jq_filter)}" if jq_filter else ""


def _filter_for(values: Sequence[Any], key: str) -> str:
    """The jq filter that makes records with a string under `key`; empty if none is known."""
    first = values[0]
    if isinstance(first, str):
        return _filter_for_text([first], key)
    if isinstance(first, list):
        return ".[]" if first else ""
    if not isinstance(first, dict):
        return ""
    if len(values) == 1 and (records := _filter_for_records(first, key)):
        return records
    return _filter_for_text([value for value in values if isinstance(value, dict)], key)


def _filter_for_records(record: dict[str, Any], key: str) -> str:
    """The jq filter for the records in one object: columns, a list, or an object of objects."""
    column = record.get(key)
    if column and isinstance(column, list) and isinstance(column[0], str):
        return f"{_jq_path(key)}[] | {{{json.dumps(key)}: .}}"
    if path := _path_of_list(record):
        return f"{path}[]"
    if record and all(isinstance(value, dict) for value in record.values()):
        return ".[]"
    return ""


def _path_of_list(record: dict[str, Any]) -> str:
    """The jq path of a list of objects, at most two keys deep; empty if there is none."""
    inner = {
        (key, name): value
        for key, held in record.items()
        if isinstance(held, dict)
        for name, value in held.items()
    }
    for keys, value in ({(key,): value for key, value in record.items()} | inner).items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return _jq_path(*keys)
    return ""


def _filter_for_text(objects: Sequence[Any], key: str) -> str:
    """The jq filter for the text of each record: turns of a chat, parts, or a nested string."""
    made = f"{{{json.dumps(key)}: %s}}"
    join = ' | map(strings) | join("\\n\\n")'
    if isinstance(objects[0], str):
        return made % "."
    kept = {name: value for record in objects for name, value in record.items() if value}
    for name, value in kept.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            for part in ("content", "value", "text", "context"):
                if isinstance(value[0].get(part), str):
                    return made % f"([{_jq_path(name)}[]{_jq_path(part)}]{join})"
        if isinstance(value, dict) and isinstance(value.get(key), str):
            return made % _jq_path(name, key)
    if isinstance(kept.get(key), list) and isinstance(kept[key][0], str):
        return made % f"({_jq_path(key)}{join})"
    parts = [name for name in (*_DIALOGUES, *_ANSWERS) if isinstance(kept.get(name), str)]
    if set(parts) & set(_DIALOGUES) and set(parts) & set(_ANSWERS):
        return made % f"([{', '.join(map(_jq_path, parts))}]{join})"
    return ""


def _jq_path(*keys: str) -> str:
    """The jq path of nested keys."""
    path = ""
    for key in keys:
        is_plain = re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII)
        path += f".{key}" if is_plain else f"[{json.dumps(key)}]"
    return path if path.startswith(".") else f".{path}"
