"""`{{convert|5|km2|sqmi}}`: the measure as it was given, with its unit as it is printed (5 km²), not its code."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wikillm.data.text.wikitext_names import RANGE_WORDS
from wikillm.data.text.wikitext_scripts import superscript

_PRINTED = {
    "C": "°C", "F": "°F", "C-change": "°C", "F-change": "°F", "K-change": "K", "R": "°R", "oilbbl": "barrels",
    "acre": "acres", "carat": "carats", "LT": "long tons", "ST": "short tons", "MT": "t", "tonne": "t", "foot": "feet",
    "USgal": "US gal", "usgal": "US gal", "U.S.gal": "US gal", "impgal": "imp gal", "hand": "hands", "NM": "nmi",
    "um": "μm", "uL": "μL", "ug": "μg", "knot": "kn",
}  # fmt: skip
_SQUARE_OR_CUBIC = re.compile(r"(sq|cu)(mi|ft|in|yd|km|m|cm|mm|nmi|fathom)")
_POWER = re.compile(r"([A-Za-zμ]+)([23])")
_SCALE = re.compile(r"e(\d+)(?=\D)|([kKMGT])(?=oilbbl|cuft|cum|acre|USgal|impgal)")
_SCALES = {"3": "thousand", "6": "million", "9": "billion", "12": "trillion"}
_PREFIXES = {"k": "3", "K": "3", "M": "6", "G": "9", "T": "12"}
_SMALLER = frozenset(
    {"in", "ft", "yd", "lb", "oz", "chain", "furlong", "min", "s"}
)  # the second unit of 6 ft 4 in


def measure(values: Sequence[str]) -> str:
    """What is shown of the arguments: the first quantity, without what it is converted to."""
    amount = values[0]
    rest = list(values[1:])
    joined = ""
    while len(rest) >= 2 and rest[0] in RANGE_WORDS:  # 5|to|10|km, 2|x|3|x|4|m
        joined += f"{RANGE_WORDS[rest[0]]}{rest[1]}"
        rest = rest[2:]
    if not rest:
        return f"{amount}{joined}"
    shown = f"{amount}{joined}{_with_space(rest[0])}"
    if len(rest) >= 3 and rest[2] in _SMALLER and re.fullmatch(r"[\d.,/+]+", rest[1]):
        shown += f" {rest[1]}{_with_space(rest[2])}"
    return shown


def _with_space(code: str) -> str:
    unit = printed_unit(code)
    return unit if unit.startswith(("/", "%")) or not unit else f" {unit}"


def printed_unit(code: str) -> str:
    """`km2` -> `km²`, `e6acre` -> `million acres`, `PD/sqmi` -> `/sq mi`; an unknown code as it is."""
    if code.startswith("PD/"):  # a density of population
        return f"/{printed_unit(code[3:])}"
    scale = _SCALE.match(code)
    if scale:
        power = scale[1] or _PREFIXES[scale[2]]
        word = _SCALES.get(power) or f"×10{superscript(power, '10')}"
        return f"{word} {printed_unit(code[scale.end() :])}".strip()
    unit, slash, per = code.partition("/")
    if slash:
        return f"{printed_unit(unit)}/{printed_unit(per)}"
    if code in _PRINTED:
        return _PRINTED[code]
    if found := _SQUARE_OR_CUBIC.fullmatch(code):
        return f"{found[1]} {found[2]}"
    if found := _POWER.fullmatch(code):
        return found[1] + superscript(found[2], found[1])
    return code
