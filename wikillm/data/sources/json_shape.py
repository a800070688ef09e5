"""Why JSON, or what looks like it, gives no text, and the line to paste that fixes it.

Looks at the probed records, or at the beginning of a file that gave none, and names the kind:
commas at line ends, Python's or JavaScript's notation, an object around the records, columns
instead of records, chat turns.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from wikillm.core.errors import DataError, did_you_mean
from wikillm.data.sources.fixes import python_lines, setting, source_filtered
from wikillm.data.sources.json_value import KINDS, parse_json
from wikillm.data.types import SourceFile

_TEXT_NAMES = (
    *("text", "content", "body", "article", "document", "raw_content", "markdown"),
    *("正文", "内容", "文本"),
)
_JOINED = (
    ("instruction", "input", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "chosen"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
    ("source", "target"),
)
"""Keys of instruction data whose strings are joined to one text."""
_LINES = "(json.loads(l) for l in sys.stdin if l.strip())"
_LONGEST_LITERAL = 1 << 16  # bytes of a line that is tried as a Python literal
_UNQUOTED_KEY = re.compile(r"^\s*[\[{]?\s*\{?\s*[A-Za-z_]\w*\s*:\s*[\"'\d\[{]")
_COMMA_AT_END = re.compile(r",\s*[}\]]$")


def kind_of_line(line: str) -> str:
    """The kind of a line that is not empty: json, comma, python or other."""
    text = line.strip()
    if _parsed(text) is not None:
        return "json"
    if text.endswith(",") and _parsed(text[:-1]) is not None:
        return "comma"
    if _literal(text.rstrip(",")) is not None:
        return "python"
    return "other"


def refuse_lines(source: SourceFile, kinds: Sequence[str], first: str) -> None:
    """Raise DataError when most lines of a file are of one kind that is not JSON."""
    if "comma" in kinds and kinds.count("comma") >= kinds.count("json"):
        raise DataError(
            "Each line of a file ends with a comma, which JSON Lines does not allow.",
            got=f"{source.path} starts with {first[:60]!r}",
            fix=source_filtered(source, "sed 's/,[[:space:]]*$//'"),
        )
    if "python" in kinds and kinds.count("python") >= kinds.count("json"):
        records = '(ast.literal_eval(l.strip().rstrip(",")) for l in sys.stdin if l.strip())'
        raise _python(source, first, records)


def refuse_object(source: SourceFile, text: str) -> None:
    """Raise DataError for a file that begins with `{` and has no line that is JSON."""
    got = f"{source.path} starts with {text[:60]!r}"
    if keys := wrapping_keys(text):
        raise DataError(
            "A file is one JSON object around its records; JSON Lines has one record per line.",
            got=f"{source.path}: {_wrapped_remark(keys)}",
            fix=unwrapped(source, keys),
        )
    if _UNQUOTED_KEY.match(text):
        raise DataError(
            "The keys of a file have no quotes: it is JavaScript, not JSON.",
            got=got,
            fix='write it as JSON: {"text": "..."}, a record a line',
        )
    if re.match(r"\{\s*'", text) or (_literal(text) is not None and not _begins_with_json(text)):
        raise _python(source, text, "[ast.literal_eval(sys.stdin.read())]")
    what = "A JSON object stretches over several lines"
    if "\n" not in text.rstrip():
        what = "Several JSON objects are on one line"
    raise DataError(
        f"{what}; JSON Lines has one record per line.",
        got=got,
        fix=source_filtered(source, "(echo '['; cat; echo ']')", ".json"),
    )


def no_objects(source: SourceFile, values: Sequence[Any], first: bytes, probed: int) -> DataError:
    """The error when the first records are not JSON objects; `values` are the parsed ones."""
    text = first.decode("utf-8", errors="replace")
    are_arrays = bool(values) and all(
        isinstance(value, list) and value and isinstance(value[0], dict) for value in values
    )
    if not values and source.format == "json" and _literal(text.strip().rstrip(",")) is not None:
        return _python(source, text, "ast.literal_eval(sys.stdin.read())")
    if values and all(isinstance(value, str) for value in values):
        fix = _lines(source, f"{{{json.dumps(source.text_key)}: r}}", _records(source))
    elif are_arrays:
        fix = _lines(source, "x", f"{_records(source)} for x in r")
    else:
        fix = 'wanted: {"text": "..."}, one per line, or an array of such objects'
    return DataError(
        f"None of the first {probed} records is a JSON object.",
        got=f"{source.path} (read as {source.format}) starts with {text[:60]!r}",
        fix=fix,
    )


def no_text(source: SourceFile, objects: Sequence[dict[str, Any]]) -> DataError:
    """The error for a source whose first objects have no string under its text key."""
    key = source.text_key
    kinds: dict[str, type] = {}
    for record in objects:
        for name, value in record.items():
            if value is not None or name not in kinds:
                kinds[name] = type(value)
    listed = ", ".join(
        f"{name} ({KINDS.get(kind, 'string')})" for name, kind in sorted(kinds.items())[:30]
    )
    listed += f", and {len(kinds) - 30} more" if len(kinds) > 30 else ""
    what = f"The records have no key {key!r} (data.text_key)."
    if key in kinds:
        kind = KINDS.get(kinds[key], "a string")
        what = f"The value of {key!r} (data.text_key) is {kind}, not a string."
    remark, fix = _advice(source, objects, kinds)
    got = f"{source.path} has the keys {listed}" + (f"\n{remark}" if remark else "")
    return DataError(what, got=got, fix=fix)


def _advice(
    source: SourceFile, objects: Sequence[dict[str, Any]], kinds: dict[str, type]
) -> tuple[str, str]:
    """A remark on what the records are, and the fix."""
    key = source.text_key
    for name, kind in kinds.items():
        if kind is list and (part := _turn_key(objects, name)) is not None:
            text = f'"\\n\\n".join(str(t.get({_py(part)}) or "") for t in r.get({_py(name)}) or [])'
            return "they are chat turns; this joins the turns of each record", _joined(source, text)
    if len(objects) == 1 and (found := _single(source, objects[0])) is not None:
        return found
    # A key with another name. Instructions of several parts come before a similar key.
    strings = [name for name, kind in kinds.items() if kind is str and name != key]
    joined = next((names for names in _JOINED if set(names) <= set(strings)), None)
    named = next((name for name in _TEXT_NAMES if name in strings), None)
    if joined is not None and named is None:
        text = f'"\\n\\n".join(str(r.get(k) or "") for k in {_py(list(joined))})'
        return "they are instructions; this joins their parts", _joined(source, text)
    same = next((name for name in strings if name.lower() == key.lower()), None)
    near = same or named or did_you_mean(key, strings)
    if near is None and strings:
        near = max(strings, key=lambda name: sum(len(str(r.get(name, ""))) for r in objects))
    if near is not None:
        return "", setting("data.text_key", near)
    # No string at all: inside an object, or in a list of strings.
    for name, kind in kinds.items():
        inner = next((r[name] for r in objects if isinstance(r.get(name), dict)), None)
        if kind is dict and inner and (path := _string_within(inner, key)) is not None:
            text = f"r[{_py(name)}]" + "".join(f"[{_py(part)}]" for part in path)
            return f"the text is inside {name!r}", _joined(source, text)
    if kinds.get(key) is list:
        return "", _joined(source, f'"\\n".join(map(str, r.get({_py(key)}) or []))')
    return "", "data.text_key=KEY with the key that holds the text"


def _single(source: SourceFile, record: dict[str, Any]) -> tuple[str, str] | None:
    """As `_advice`, for a file of one object that holds all records; None where it does not."""
    if (path := _records_within(record)) is not None:
        return _wrapped_remark(path), unwrapped(source, path)
    key = source.text_key
    column = record.get(key)
    values = list(column.values()) if isinstance(column, dict) else column
    if values and isinstance(values, list) and all(isinstance(value, str) for value in values):
        records = f"json.load(sys.stdin)[{_py(key)}]"
        records += ".values()" if isinstance(column, dict) else ""
        return "it is one object of columns", _lines(source, f"{{{_py(key)}: r}}", records)
    if record and all(isinstance(value, dict) for value in record.values()):
        fix = _lines(source, "r", "json.load(sys.stdin).values()")
        return "it is one object of records", fix
    return None


def _turn_key(objects: Sequence[dict[str, Any]], name: str) -> str | None:
    """`content` or `value` when the lists under `name` hold turns of a chat."""
    for record in objects:
        turns = record.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return next((k for k in ("content", "value") if isinstance(turns[0].get(k), str)), None)
    return None


def _string_within(value: dict[str, Any], key: str, depth: int = 2) -> list[str] | None:
    """The keys that lead to a string in an object: the one under `key`, else the longest."""
    if isinstance(value.get(key), str):
        return [key]
    for name, inner in value.items():
        if depth and isinstance(inner, dict):
            found = _string_within(inner, key, depth - 1)
            if found is not None:
                return [name, *found]
    strings = [name for name, inner in value.items() if isinstance(inner, str)]
    return [max(strings, key=lambda name: len(value[name]))] if strings else None


def _records_within(value: dict[str, Any], depth: int = 2) -> list[str] | None:
    """The keys that lead to a list of objects in an object."""
    for name, inner in value.items():
        if isinstance(inner, list) and inner and all(isinstance(item, dict) for item in inner):
            return [name]
    for name, inner in value.items():
        if depth and isinstance(inner, dict):
            found = _records_within(inner, depth - 1)
            if found is not None:
                return [name, *found]
    return None


def wrapping_keys(text: str) -> list[str]:
    """The keys that lead to the first list of objects in the object that `text` begins with."""
    decoder = json.JSONDecoder()
    at = 0
    keys: list[str] = []
    try:
        while True:
            at = _skip(text, at, "{,")
            name, at = decoder.raw_decode(text, at)
            at = _skip(text, at, ":")
            if not isinstance(name, str):
                return []
            if text.startswith("[", at) and text.startswith("{", _skip(text, at, "[")):
                return [*keys, name]
            try:
                value, at = decoder.raw_decode(text, at)
            except ValueError:
                if not text.startswith("{", at) or len(keys) == 2:
                    return []
                keys.append(name)  # cut off: the records may be further inside
                continue
            if isinstance(value, dict) and (inner := _records_within(value, 1)) is not None:
                return [*keys, name, *inner]
    except (ValueError, RecursionError):
        return []


def _skip(text: str, at: int, marks: str) -> int:
    while at < len(text) and text[at] in " \t\r\n" + marks:
        at += 1
    return at


def _wrapped_remark(keys: list[str]) -> str:
    return f"the records are a list under {'.'.join(keys)!r}"


def unwrapped(source: SourceFile, keys: list[str]) -> str:
    """A line that writes the objects under `keys` as JSON Lines, and the setting that reads it."""
    return _lines(source, "r", "json.load(sys.stdin)" + "".join(f"[{_py(key)}]" for key in keys))


def _joined(source: SourceFile, text: str) -> str:
    return _lines(source, f"{{{_py(source.text_key)}: {text}}}", _records(source))


def _lines(source: SourceFile, expression: str, records: str) -> str:
    return source_filtered(source, python_lines(expression, records))


def _records(source: SourceFile) -> str:
    return _LINES if source.format == "jsonl" else "json.load(sys.stdin)"


def _python(source: SourceFile, first: str, records: str) -> DataError:
    what = "A file holds Python dicts (single quotes, None, True), not JSON."
    line = first.strip().rstrip(",")
    comma = _COMMA_AT_END.search(line)
    if comma and _parsed(line[: comma.start()] + line[comma.start() + 1 :]) is not None:
        what = (
            "The records of a file have a comma before their closing bracket, which JSON forbids."
        )
    got = f"{source.path} starts with {first[:60]!r}"
    return DataError(what, got=got, fix=_lines(source, "r", records))


def _py(value: Any) -> str:
    """A Python literal in double quotes, since the shell takes the single ones."""
    return json.dumps(value, ensure_ascii=False)


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _begins_with_json(text: str) -> bool:
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _literal(text: str) -> Any:
    """The Python dict or list that `text` writes; None for anything else."""
    if len(text) > _LONGEST_LITERAL or not text.startswith(("{", "[")):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return value if isinstance(value, (dict, list)) else None
