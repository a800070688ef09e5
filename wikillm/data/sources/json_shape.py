"""Why JSON, or what looks like it, gives no text, and what to do about it.

Looks at records that were probed, or at the beginning of a file that gave none, and names the kind: commas at the ends of
lines, Python's or JavaScript's notation, an object around the records, columns instead of records, chat turns. Each
error has a line to paste that changes the outcome, and that works on the whole file.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from wikillm.core.errors import DataError, did_you_mean
from wikillm.data.sources.fixes import filtered, python_lines, setting
from wikillm.data.sources.json_value import parse_json
from wikillm.data.types import SourceFile

_TEXT_NAMES = (
    "text",
    "content",
    "body",
    "article",
    "document",
    "raw_content",
    "markdown",
    "正文",
    "内容",
    "文本",
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
_LINES = "(json.loads(l) for l in sys.stdin if l.strip())"
_LONGEST_LITERAL = 1 << 16  # bytes of a line that is tried as a Python literal
_UNQUOTED_KEY = re.compile(r"^\s*[\[{]?\s*\{?\s*[A-Za-z_]\w*\s*:\s*[\"'\d\[{]")
_COMMA_AT_END = re.compile(r",\s*[}\]]$")


def kind_of_line(line: str) -> str:
    """What a line that is not empty is: json, comma, python or other."""
    text = line.strip()
    if _parsed(text) is not None:
        return "json"
    if text.endswith(",") and _parsed(text[:-1]) is not None:
        return "comma"
    if _literal(text.rstrip(",")) is not None:
        return "python"
    return "other"


def refuse_lines(source: SourceFile, kinds: Sequence[str], first: str) -> None:
    """Raise DataError when the lines of a file that begins like JSON Lines are of one kind that is not JSON."""
    if "comma" in kinds and kinds.count("comma") >= kinds.count("json"):
        raise DataError(
            "Each line of a file ends with a comma, which JSON Lines has not.",
            got=f"{source.path} starts with {first[:60]!r}",
            fix=filtered(source.path, source.compression, "sed 's/,[[:space:]]*$//'", ".jsonl"),
        )
    if "python" in kinds and kinds.count("python") >= kinds.count("json"):
        records = '(ast.literal_eval(l.strip().rstrip(",")) for l in sys.stdin if l.strip())'
        raise _python(source, first, records)


def refuse_object(source: SourceFile, text: str) -> None:
    """Raise DataError for a file that begins with `{` and has no line that is JSON: why, and what makes lines of it."""
    got = f"{source.path} starts with {text[:60]!r}"
    keys = wrapping_keys(text)
    if keys:
        raise _wrapped(source, keys)
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
        fix=filtered(source.path, source.compression, "(echo '['; cat; echo ']')", ".json"),
    )


def no_objects(source: SourceFile, values: Sequence[Any], first: bytes, probed: int) -> DataError:
    """The error for a source whose first records are not JSON objects; `values` are those that could be parsed."""
    what = f"None of the first {probed} records is a JSON object."
    text = first.decode("utf-8", errors="replace")
    got = f"{source.path} (read as {source.format}) starts with {text[:60]!r}"
    if values and all(isinstance(value, str) for value in values):
        expression = f"{{{json.dumps(source.text_key)}: r}}"
    elif values and all(
        isinstance(value, list) and value and isinstance(value[0], dict) for value in values
    ):
        code = python_lines("x", f"{_records(source)} for x in r")
        return DataError(
            what, got=got, fix=filtered(source.path, source.compression, code, ".jsonl")
        )
    elif not values and source.format == "json" and _literal(text.strip().rstrip(",")) is not None:
        return _python(source, text, "ast.literal_eval(sys.stdin.read())")
    else:
        return DataError(
            what, got=got, fix='wanted: {"text": "..."}, one per line, or an array of such objects'
        )
    code = python_lines(expression, _records(source))
    return DataError(what, got=got, fix=filtered(source.path, source.compression, code, ".jsonl"))


def no_text(source: SourceFile, objects: Sequence[dict[str, Any]]) -> DataError:
    """The error for a source whose first objects have no string under its text key."""
    key = source.text_key
    kinds: dict[str, type] = {}
    for record in objects:
        for name, value in record.items():
            if value is not None or name not in kinds:
                kinds[name] = type(value)
    listed = ", ".join(
        f"{name} ({_KINDS.get(kind, 'string')})" for name, kind in sorted(kinds.items())[:30]
    )
    listed += f", and {len(kinds) - 30} more" if len(kinds) > 30 else ""
    what = f"The records have no key {key!r} (data.text_key)."
    if key in kinds:
        what = f"The value of {key!r} (data.text_key) is {_KINDS.get(kinds[key], 'a string')}, not a string."
    remark, fix = _advice(source, objects, kinds)
    return DataError(
        what,
        got=f"{source.path} has the keys {listed}" + (f"\n{remark}" if remark else ""),
        fix=fix,
    )


_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _advice(
    source: SourceFile, objects: Sequence[dict[str, Any]], kinds: dict[str, type]
) -> tuple[str, str]:
    """A remark on what the records are, and what to do."""
    key = source.text_key
    for name, kind in kinds.items():
        if kind is list and (part := _turn_key(objects, name)) is not None:
            text = f'"\\n\\n".join(str(t.get({_py(part)}) or "") for t in r.get({_py(name)}) or [])'
            return "they are chat turns; this joins the turns of each record", _joined(source, text)
    if len(objects) == 1:
        (record,) = objects
        if (path := _records_within(record)) is not None:
            return _wrapped_remark(path), unwrapped(source, path)
        column = record.get(key)
        if (
            isinstance(column, (list, dict))
            and column
            and all(isinstance(v, str) for v in _values(column))
        ):
            values = f"json.load(sys.stdin)[{_py(key)}]" + (
                ".values()" if isinstance(column, dict) else ""
            )
            code = python_lines(f"{{{_py(key)}: r}}", values)
            return "it is one object of columns", filtered(
                source.path, source.compression, code, ".jsonl"
            )
        if record and all(isinstance(value, dict) for value in record.values()):
            code = python_lines("r", "json.load(sys.stdin).values()")
            return "it is one object of records", filtered(
                source.path, source.compression, code, ".jsonl"
            )
    strings = [name for name, kind in kinds.items() if kind is str and name != key]
    joined = next((names for names in _JOINED if set(names) <= set(strings)), None)
    named = next((name for name in _TEXT_NAMES if name in strings), None)
    if joined is not None and named is None:
        text = f'"\\n\\n".join(str(r.get(k) or "") for k in {_py(list(joined))})'
        return "they are instructions; this joins their parts", _joined(source, text)
    near = (
        next((name for name in strings if name.lower() == key.lower()), None)
        or named
        or did_you_mean(key, strings)
    )
    if near is None and strings:
        near = max(
            strings, key=lambda name: sum(len(str(record.get(name, ""))) for record in objects)
        )
    if near is not None:
        return "", setting("data.text_key", near)
    for name, kind in kinds.items():
        inner = (
            next((r[name] for r in objects if isinstance(r.get(name), dict)), None)
            if kind is dict
            else None
        )
        if inner is not None and (path := _string_within(inner, key)) is not None:
            text = f"r[{_py(name)}]" + "".join(f"[{_py(part)}]" for part in path)
            return f"the text is inside {name!r}", _joined(source, text)
    if kinds.get(key) is list:
        return "", _joined(source, f'"\\n".join(map(str, r.get({_py(key)}) or []))')
    return "", "data.text_key=KEY with the key that holds the text"


def _turn_key(objects: Sequence[dict[str, Any]], name: str) -> str | None:
    """`content` or `value` when the lists under `name` hold turns of a chat."""
    for record in objects:
        turns = record.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return next(
                (part for part in ("content", "value") if isinstance(turns[0].get(part), str)), None
            )
    return None


def _string_within(value: dict[str, Any], key: str, depth: int = 2) -> list[str] | None:
    if isinstance(value.get(key), str):
        return [key]
    for name, inner in value.items():
        if (
            depth
            and isinstance(inner, dict)
            and (found := _string_within(inner, key, depth - 1)) is not None
        ):
            return [name, *found]
    strings = [name for name, inner in value.items() if isinstance(inner, str)]
    return [max(strings, key=lambda name: len(value[name]))] if strings else None


def _records_within(value: dict[str, Any], depth: int = 2) -> list[str] | None:
    """The keys that lead to a list of objects in an object."""
    for name, inner in value.items():
        if isinstance(inner, list) and inner and all(isinstance(item, dict) for item in inner):
            return [name]
    for name, inner in value.items():
        if (
            depth
            and isinstance(inner, dict)
            and (found := _records_within(inner, depth - 1)) is not None
        ):
            return [name, *found]
    return None


def wrapping_keys(text: str) -> list[str]:
    """The keys that lead to the first list of objects in an object of which `text` is the beginning."""
    decoder = json.JSONDecoder()
    at, keys = 0, list[str]()
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


def _wrapped(source: SourceFile, keys: list[str]) -> DataError:
    return DataError(
        "A file is one JSON object around its records; JSON Lines has one record per line.",
        got=f"{source.path}: {_wrapped_remark(keys)}",
        fix=unwrapped(source, keys),
    )


def _wrapped_remark(keys: list[str]) -> str:
    return f"the records are a list under {'.'.join(keys)!r}"


def unwrapped(source: SourceFile, keys: list[str]) -> str:
    """A line that makes JSON Lines of the list of objects under `keys`, and the setting that reads them."""
    place = "".join(f"[{_py(key)}]" for key in keys)
    code = python_lines("r", f"json.load(sys.stdin){place}")
    return filtered(source.path, source.compression, code, ".jsonl")


def _joined(source: SourceFile, text: str) -> str:
    code = python_lines(f"{{{_py(source.text_key)}: {text}}}", _records(source))
    return filtered(source.path, source.compression, code, ".jsonl")


def _records(source: SourceFile) -> str:
    return _LINES if source.format == "jsonl" else "json.load(sys.stdin)"


def _python(source: SourceFile, first: str, records: str) -> DataError:
    what = "A file holds Python dicts (single quotes, None, True), not JSON."
    line = first.strip().rstrip(",")
    comma = _COMMA_AT_END.search(line)
    if comma and _parsed(line[: comma.start()] + line[comma.start() + 1 :]) is not None:
        what = "The records of a file have a comma before their closing bracket, which JSON does not allow."
    return DataError(
        what,
        got=f"{source.path} starts with {first[:60]!r}",
        fix=filtered(source.path, source.compression, python_lines("r", records), ".jsonl"),
    )


def _py(value: Any) -> str:
    """A string or a list of strings as Python writes it in double quotes, since the shell takes the single ones."""
    return json.dumps(value, ensure_ascii=False)


def _values(column: list[Any] | dict[str, Any]) -> list[Any]:
    return list(column.values()) if isinstance(column, dict) else column


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
    """A Python dict or list that `text` is; None for anything else."""
    if len(text) > _LONGEST_LITERAL or not text.startswith(("{", "[")):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return value if isinstance(value, (dict, list)) else None
