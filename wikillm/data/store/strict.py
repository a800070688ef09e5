"""JSON into frozen dataclasses, every value of the type that the field declares: what was written by others is not believed.

Known are str, bool, int (whole, from 0 to 2^63 - 1), `X | None`, `tuple[X, ...]`, `dict[str, X]`, `Any` and dataclasses of
these. A field may be left out if it has a default and its name is among `later`: those that a format got after its
first version. An unknown key is an error.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
_Reader = Callable[[Any], Any]
_MOST = 2**63


class Mistyped(ValueError):
    """A value that is not of its field's type; `place` grows from the inside out."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(f"{place.lstrip('.')}: {what}" if place else what)
        self.what, self.place = what, place

    def within(self, place: str) -> Mistyped:
        return Mistyped(self.what, place + self.place)


def read_strictly(cls: type[T], value: Any, later: frozenset[str] = frozenset()) -> T:
    """`value` as a `cls`. Raises Mistyped naming the first field that does not fit."""
    kind: Any = cls
    found: T = _reader_of(kind, later)(value)
    return found


@lru_cache(maxsize=256)
def _reader_of(kind: Any, later: frozenset[str]) -> _Reader:
    if is_dataclass(kind):
        return _dataclass_reader(kind, later)
    if kind is Any:
        return lambda value: value
    if kind is int:
        return _whole_number
    if kind in (str, bool):
        return _exactly(kind, {str: "a string", bool: "true or false"}[kind])
    arguments = get_args(kind)
    if get_origin(kind) in (types.UnionType,) and type(None) in arguments:
        inner = _reader_of(next(one for one in arguments if one is not type(None)), later)
        return lambda value: None if value is None else inner(value)
    if get_origin(kind) is tuple:
        return _tuple_reader(_reader_of(arguments[0], later))
    if get_origin(kind) is dict:
        return _dict_reader(_reader_of(arguments[1], later))
    raise TypeError(f"fields of type {kind} are not read")


def _whole_number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise Mistyped(f"{_short(value)} is not a whole number from 0 to 2^63 - 1")
    return value


def _exactly(kind: type, name: str) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise Mistyped(f"{_short(value)} is not {name}")
        return value

    return read


def _tuple_reader(inner: _Reader) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise Mistyped(f"{_short(value)} is not a list")
        found = []
        for number, item in enumerate(value):
            try:
                found.append(inner(item))
            except Mistyped as error:
                raise error.within(f"[{number}]") from None
        return tuple(found)

    return read


def _dict_reader(inner: _Reader) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise Mistyped(f"{_short(value)} is not an object")
        found = {}
        for name, item in value.items():
            try:
                found[name] = inner(item)
            except Mistyped as error:
                raise error.within(f".{name}") from None
        return found

    return read


def _dataclass_reader(cls: Any, later: frozenset[str]) -> _Reader:
    hints = get_type_hints(cls)
    readers = {one.name: _reader_of(hints[one.name], later) for one in fields(cls)}
    needed = {one.name for one in fields(cls) if one.default is MISSING or one.name not in later}

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise Mistyped(f"{_short(value)} is not an object")
        if missing := sorted(needed - value.keys()):
            raise Mistyped("it is missing", f".{missing[0]}")
        found = {}
        for name, item in value.items():
            if name not in readers:
                raise Mistyped("no such key is known", f".{name}")
            try:
                found[name] = readers[name](item)
            except Mistyped as error:
                raise error.within(f".{name}") from None
        return cls(**found)

    return read


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
