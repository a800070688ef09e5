"""The text of templates inside sentences; all other templates give no text.

Arguments are passed as text: unnamed arguments in order, named arguments by a function that returns
an empty text for a missing name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from wikillm.data.text import wikitext_names
from wikillm.data.text.wikitext_scripts import subscript, superscript

_LAST_ARGUMENT = frozenset(
    {
        *("lang", "langx", "rtl-lang", "transl", "transliteration"),
        *("color", "colour", "fontcolor", "font color", "w"),
    }
)
_TRANSLATED = frozenset({"tsl", "translink", "link"})
"""{{tsl|en|foreign|local|shown}}"""
_LINKS_WITH_LANGUAGE = frozenset({"ill", "illm", "interlanguage link"})
"""{{ill|local|en|foreign|lt=shown}}; {{le|local|foreign|shown}} has the language in its name."""
_RAISED = frozenset({"sup", "superscript", "smallsup", "上标", "上標"})
_LOWERED = frozenset({"sub", "subscript", "smallsub", "下标", "下標"})
_CHEM = ("chem", "simple chem", "化學式", "化学式")
_NUMBERS = frozenset({*_RAISED, *_LOWERED, "e", "10^", "val", "chem2", *_CHEM, "subsup"})
_CHARGE = re.compile(r"\((\d*[+\-−])\)|(?<=[A-Za-z0-9)\]])([+\-−])(?=$|[\s)\]])")
_COUNT = re.compile(r"(?<=[A-Za-z)\]])\d+")
_COUNT_IN_FORMULA = re.compile(r"[0-9a-z][0-9a-z+\-−]*|[+\-−]")
"""{{chem|C|n|H|2n+2}}; elements begin in upper case."""

_SQUARE_OR_CUBIC = re.compile(r"(sq|cu)(mi|ft|in|yd|km|m|cm|mm|nmi|fathom)")
_POWER = re.compile(r"([A-Za-zμ]+)([23])")
_SCALE = re.compile(r"e(\d+)(?=\D)|([kKMGT])(?=oilbbl|cuft|cum|acre|USgal|impgal)")
_SCALES = {"3": "thousand", "6": "million", "9": "billion", "12": "trillion"}
_PREFIXES = {"k": "3", "K": "3", "M": "6", "G": "9", "T": "12"}
_SMALLER = frozenset({"in", "ft", "yd", "lb", "oz", "chain", "furlong", "min", "s"})
"""Units of the second part of 6 ft 4 in."""


_FUNCTIONS: dict[str, Callable[[str], str]] = {
    "formatnum": str,
    "lc": str.lower,
    "uc": str.upper,
    "lcfirst": lambda text: text[:1].lower() + text[1:],
    "ucfirst": lambda text: text[:1].upper() + text[1:],
}


def is_function(name: str) -> bool:
    """Whether `name`, the part before the colon, is a parser function that shows text."""
    name = name.strip().casefold()
    return name in _FUNCTIONS or name in ("#if", "#ifeq")


def text_of_function(name: str, first: str, others: Sequence[str]) -> str:
    """The text of `{{name:first|others}}`, for a name that `is_function` accepts."""
    name = name.strip().casefold()
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](first)
    is_true = bool(first)
    if name == "#ifeq":
        is_true = first == (others[0] if others else "")
        others = others[1:]
    return next(iter(others[0 if is_true else 1 :]), "")


def text_of_template(
    name: str, values: Sequence[str], named: Callable[[str], str], before: str
) -> str:
    """The text of `{{name|values|named}}`; empty for an unknown template.

    Args:
        name: in lower case, with spaces for underscores.
        before: the text in front of the template.
    """
    if name in wikitext_names.LITERALS and not values:
        return wikitext_names.LITERALS[name]
    if name in wikitext_names.QUOTES:
        at = -1 if name == "columns-list" else 0  # a columns-list may begin with their number
        quoted = values[at] if values else named("text") or named("quote") or named("1")
        return f"\n{quoted.strip()}\n"
    if name == "su":  # {{su|b=2|p=8}} shows 8 above 2
        return subscript(named("b"), before) + superscript(named("p"), before)
    if not values and (
        name in wikitext_names.FIRST_ARGUMENT or name in _NUMBERS
    ):  # {{nowrap|1=a = b}}
        values = [value for value in (named("1"), named("2")) if value]
    if not values:
        return ""
    if name in _NUMBERS:
        return _number(name, values, named, before)
    if name in _LINKS_WITH_LANGUAGE:
        return named("lt") or values[0]
    if name == "le" or name.startswith(("link-", "internal link helper")):
        return named("d") or "".join(values[2:3]) or values[0]
    return _inline(name, values)


def _number(name: str, values: Sequence[str], named: Callable[[str], str], before: str) -> str:
    """The text of templates that raise or lower their content."""
    if name in _RAISED:
        return superscript(values[0], before)
    if name in _LOWERED:
        return subscript(values[0], before)
    if name == "e":  # 3{{e|8}}
        return f"×10{superscript(values[0], '10')}"
    if name == "10^":
        return f"10{superscript(values[0], '10')}"
    if name == "subsup":  # {{subsup|x|1|2}}
        base, lower, upper = [*values, "", ""][:3]
        return base + subscript(lower, base) + superscript(upper, base)
    if name == "val":
        return _quantity(values, named)
    if name == "chem2":
        return _formula(values[0])
    shown = ""
    for at, part in enumerate(values):
        if at and _COUNT_IN_FORMULA.fullmatch(part):
            part = superscript(part, "x") if part[-1] in "+-−" else subscript(part, "x")
        shown += part
    return shown


def _formula(text: str) -> str:
    """{{chem2|SO4(2-)}}: counts after elements and brackets, charges in brackets or at an end."""
    text = _CHARGE.sub(lambda found: superscript(found[1] or found[2], "x"), text)
    text = _COUNT.sub(lambda found: subscript(found[0], "x"), text)
    return text.replace("->", "→").replace("*", "·")


def _quantity(values: Sequence[str], named: Callable[[str], str]) -> str:
    """{{val|1.5|0.2|e=8|u=m/s}}: number, uncertainty, power of ten, unit."""
    text = values[0]
    if len(values) == 2 and values[1]:
        text += f"±{values[1]}"
    if exponent := named("e"):
        text = f"({text})" if "±" in text else text
        text += f"×10{superscript(exponent, '10')}"
    unit = named("u") or named("ul")
    return f"{text} {unit}".rstrip()


def _inline(name: str, values: Sequence[str]) -> str:
    """The text of templates that show some of their unnamed arguments."""
    if name in wikitext_names.FIRST_ARGUMENT or (name.startswith("lang-") and len(name) <= 12):
        return values[0]
    if name in _LAST_ARGUMENT:
        return values[-1] if len(values) < 4 else values[1]
    if name in _TRANSLATED:
        return next((value for value in (*values[3:4], *values[2:3], *values[1:2]) if value), "")
    if name in ("convert", "cvt"):
        return _measure(values)
    if name in wikitext_names.AROUND:
        return wikitext_names.AROUND[name].format(values[0])
    if name in ("sqrt", "radic"):
        plain = values[0].strip("'")
        return f"√{plain}" if plain.isalnum() else f"√({values[0]})"
    if name in ("frac", "sfrac", "tfrac", "dfrac", "fraction"):
        return {1: "1/{0}", 2: "{0}/{1}"}.get(len(values), "{0} {1}/{2}").format(*values)
    return "".join(values) if name == "gaps" else ""


def _measure(values: Sequence[str]) -> str:
    """{{convert|5|km2|sqmi}}: the quantity as given, with its unit as printed (5 km²)."""
    shown = values[0]
    rest = list(values[1:])
    while len(rest) >= 2 and rest[0] in wikitext_names.RANGE_WORDS:  # 5|to|10|km, 2|x|3|x|4|m
        shown += f"{wikitext_names.RANGE_WORDS[rest[0]]}{rest[1]}"
        rest = rest[2:]
    if not rest:
        return shown
    shown += _with_space(rest[0])
    if len(rest) >= 3 and rest[2] in _SMALLER and re.fullmatch(r"[\d.,/+]+", rest[1]):
        shown += f" {rest[1]}{_with_space(rest[2])}"
    return shown


def _with_space(code: str) -> str:
    unit = _printed(code)
    return unit if unit.startswith(("/", "%")) or not unit else f" {unit}"


def _printed(code: str) -> str:
    """`km2` -> `km²`, `e6acre` -> `million acres`, `PD/sqmi` -> `/sq mi`; unknown codes stay."""
    if code.startswith("PD/"):  # a density of population
        return f"/{_printed(code[3:])}"
    if scale := _SCALE.match(code):
        power = scale[1] or _PREFIXES[scale[2]]
        word = _SCALES.get(power) or f"×10{superscript(power, '10')}"
        return f"{word} {_printed(code[scale.end() :])}".strip()
    unit, slash, per = code.partition("/")
    if slash:
        return f"{_printed(unit)}/{_printed(per)}"
    if code in wikitext_names.PRINTED_UNITS:
        return wikitext_names.PRINTED_UNITS[code]
    if found := _SQUARE_OR_CUBIC.fullmatch(code):
        return f"{found[1]} {found[2]}"
    if found := _POWER.fullmatch(code):
        return found[1] + superscript(found[2], found[1])
    return code
