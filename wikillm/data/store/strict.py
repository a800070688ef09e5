"""JSON into frozen dataclasses, every value of its field's type: files of others are not trusted.

Known are str, bool, int (whole, from 0 to 2^63 - 1), `X | None`, `tuple[X, ...]`, `dict[str, X]`,
`Any` and dataclasses of these. A field may be left out if it has a default and its name is among
`later`: the fields that a format got after its first version. An unknown key is an error.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
_EXACT = {str: "a string", bool: "true or false", dict: "an object", list: "a list"}


def read_strictly(cls: type[T], value: Any, later: frozenset[str] = frozenset()) -> T:
    """`value` as a `cls`. Raises ValueError naming the first field that does not fit."""
    found: T = _read(cls, value, "", later)
    return found


def _read(kind: Any, value: Any, place: str, later: frozenset[str]) -> Any:
    origin = get_origin(kind)
    arguments = get_args(kind)
    if kind is Any:
        return value
    if kind is int:
        if type(value) is not int or not 0 <= value < 2**63:
            raise _wrong(place, f"{_short(value)} is not a whole number from 0 to 2^63 - 1")
        return value
    if origin is types.UnionType:  # X | None
        return None if value is None else _read(arguments[0], value, place, later)
    if origin is tuple:
        items = _exactly(list, value, place)
        return tuple(
            _read(arguments[0], item, f"{place}[{n}]", later) for n, item in enumerate(items)
        )
    if origin is dict:
        items = _exactly(dict, value, place)
        return {
            name: _read(arguments[1], item, f"{place}.{name}", later)
            for name, item in items.items()
        }
    if kind in _EXACT:
        return _exactly(kind, value, place)
    hints, needed = _fields_of(kind, later)
    items = _exactly(dict, value, place)
    if missing := sorted(needed - items.keys()):
        raise _wrong(f"{place}.{missing[0]}", "it is missing")
    if unknown := [name for name in items if name not in hints]:
        raise _wrong(f"{place}.{unknown[0]}", "no such key is known")
    return kind(
        **{name: _read(hints[name], item, f"{place}.{name}", later) for name, item in items.items()}
    )


@lru_cache(maxsize=64)
def _fields_of(cls: Any, later: frozenset[str]) -> tuple[dict[str, Any], set[str]]:
    """The types of a dataclass's fields, and the names that must be given."""
    needed = {one.name for one in fields(cls) if one.default is MISSING or one.name not in later}
    return get_type_hints(cls), needed


def _exactly(kind: type, value: Any, place: str) -> Any:
    if type(value) is not kind:
        raise _wrong(place, f"{_short(value)} is not {_EXACT[kind]}")
    return value


def _wrong(place: str, what: str) -> ValueError:
    return ValueError(f"{place.lstrip('.')}: {what}" if place else what)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
