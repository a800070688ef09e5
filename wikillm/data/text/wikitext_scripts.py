"""Superscripts and subscripts in plain text: `10<sup>8</sup>` is 10⁸, not 108.

Digits and signs become the raised or lowered characters of Unicode. Other terms that directly
follow a base are written as in TeX, `e^(iπx)` and `T_max`. Words, footnote signs and the endings of
ordinals stay as they are.
"""

from __future__ import annotations

import re

_RAISED = str.maketrans("0123456789+-−–=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻⁼⁽⁾ⁿ")
_LOWERED = str.maketrans("0123456789+-−–=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₋₌₍₎")
_ALL_RAISED = re.compile(r"[0-9+\-−–=()]+|n")
_ALL_LOWERED = re.compile(r"[0-9+\-−–=()]+")
_ORDINAL_ENDINGS = frozenset(
    (
        *("st", "nd", "rd", "th", "er", "ère", "re", "ème", "eme", "nde", "de", "os", "as", "ma"),
        *("me", "mes", "mo", "ste", "ter", "le", "lle", "lles", "to", "ts", "tm", "sm"),
    )
)
_TERM = re.compile(r"[0-9A-Za-z\u0370-\u03ff\u2070-\u209f²³¹+\-−–*/.,=<>()^_'′″∞°·×]{1,24}")
_ADJACENT_NUMBERS = re.compile(r"[\da-zA-Z)][+\-−–±~]?\d[^\n]*")
_ALL_IN_QUOTES = re.compile(r"^'{2,5}([^']+)'{2,5}$")
_IN_BRACKETS = re.compile(r"\([^()]*\)")
_BASE_ENDS = "'′″)]）】|\x03"  # includes marks of italics and of `wikitext_regions`
_ONE_SIGN = re.compile(r"[+\-−–]?(?:\w|[\d.,]+)|[′″'*°]+")
_ONE_NAME = re.compile(r"[+\-−–]?(?:\w|[.,′'])+")


def superscript(text: str, before: str) -> str:
    """`text` as a superscript after `before`, the end of the text in front of it."""
    shown = _without_style(text)
    if not shown:
        return ""
    if _ALL_RAISED.fullmatch(shown):
        return shown.translate(_RAISED)
    if shown.casefold().rstrip(".") in _ORDINAL_ENDINGS:
        return shown
    return _marked("^", text, shown, before, _ONE_SIGN)


def subscript(text: str, before: str) -> str:
    """`text` as a subscript after `before`, the end of the text in front of it."""
    shown = _without_style(text)
    if not shown:
        return ""
    if _ALL_LOWERED.fullmatch(shown):
        return shown.translate(_LOWERED)
    return _marked("_", text, shown, before, _ONE_NAME)


def _without_style(text: str) -> str:
    return _ALL_IN_QUOTES.sub(r"\1", text.strip())


def _marked(sign: str, text: str, shown: str, before: str, bare: re.Pattern[str]) -> str:
    """A term after its base as in TeX; a term that `bare` matches needs no brackets."""
    if sign == "_" and shown.startswith("(") and shown.endswith(")"):  # a state of matter: H₂O(l)
        return shown
    if _ADJACENT_NUMBERS.fullmatch(f"{before[-1:]}{shown}"):  # 10<sup>3 to 5</sup>: never 103
        return f"{sign}{shown}" if bare.fullmatch(shown) else f"{sign}({shown})"
    follows_base = before != "" and (before[-1].isalnum() or before[-1] in _BASE_ENDS)
    if not follows_base or not _TERM.fullmatch(shown):
        return text
    is_single = bare.fullmatch(shown) or _IN_BRACKETS.fullmatch(shown)
    return f"{sign}{shown}" if is_single else f"{sign}({shown})"
