"""Templates that are part of a sentence; all others give nothing, since what they hold is not known here.

Arguments come as text: unnamed ones in order, named ones from a function that gives an empty text for those missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from wikillm.data.text.wikitext_names import FIRST_ARGUMENT, LITERALS, QUOTES
from wikillm.data.text.wikitext_scripts import subscript, superscript
from wikillm.data.text.wikitext_units import measure

_LAST_ARGUMENT = frozenset(
    {
        "lang",
        "langx",
        "rtl-lang",
        "transl",
        "transliteration",
        "color",
        "colour",
        "fontcolor",
        "font color",
    }
)
_TRANSLATED = frozenset(
    {"tsl", "translink", "link", "internal link helper"}
)  # {{tsl|en|foreign|local|shown}}
_COUNT_IN_FORMULA = re.compile(
    r"[0-9a-z][0-9a-z+\-−]*|[+\-−]"
)  # {{chem|C|n|H|2n+2}}; elements begin in upper case


def text_of_template(
    name: str, values: Sequence[str], named: Callable[[str], str], before: str
) -> str:
    """What `{{name|values|named}}` shows.

    Args:
        name: in lower case, with spaces for underscores; a parser function with all up to its first `|`.
        before: what stands before it in the text.
    """
    function, colon, argument = name.partition(":")
    if colon and function.strip() == "formatnum":
        return argument
    if name in LITERALS and not values:
        return LITERALS[name]
    if name in QUOTES:
        quoted = values[0] if values else named("text") or named("quote") or named("1")
        return f"\n{quoted.strip()}\n"
    if name == "su":  # {{su|b=2|p=8}}: one above the other
        return subscript(named("b"), before) + superscript(named("p"), before)
    if not values and (name in FIRST_ARGUMENT or name in _NUMBERS):  # {{nowrap|1=a = b}}
        values = [value for value in (named("1"), named("2")) if value]
    if not values:
        return ""
    if name in _NUMBERS:
        return _number(name, values, named, before)
    return _inline(name, values)


_RAISED = frozenset({"sup", "superscript", "smallsup", "上标", "上標"})
_LOWERED = frozenset({"sub", "subscript", "smallsub", "下标", "下標"})
_NUMBERS = frozenset({*_RAISED, *_LOWERED, "e", "10^", "val", "chem", "simple chem", "subsup"})


def _number(name: str, values: Sequence[str], named: Callable[[str], str], before: str) -> str:
    """Templates that raise or lower what they hold."""
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
    return "".join(
        (superscript(part, "x") if part[-1] in "+-−" else subscript(part, "x"))
        if at and _COUNT_IN_FORMULA.fullmatch(part)
        else part
        for at, part in enumerate(values)
        if part
    )


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
    if name in FIRST_ARGUMENT or (name.startswith(("lang-", "link-")) and len(name) <= 12):
        return values[0]
    if name in _LAST_ARGUMENT:
        return values[-1] if len(values) < 4 else values[1]
    if name in _TRANSLATED:
        return next((value for value in (*values[3:4], *values[2:3], *values[1:2]) if value), "")
    if name in ("convert", "cvt"):
        return measure(values)
    if name in ("angbr", "angle bracket"):
        return f"⟨{values[0]}⟩"
    if name in ("frac", "sfrac", "fraction"):
        return {1: "1/{0}", 2: "{0}/{1}"}.get(len(values), "{0} {1}/{2}").format(*values)
    if name in ("circa", "c.", "ca"):
        return f"c. {values[0]}"
    if name in ("as of", "截至"):
        return f"As of {values[0]}" if name == "as of" else f"截至{values[0]}"
    if name == "gaps":
        return "".join(values)
    return ""
