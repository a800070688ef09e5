"""Whether a text is Chinese, and written in simplified or traditional characters.

A character that is in the encoding GB 2312 but not in Big5 counts as simplified; a character that
is in Big5 but not in GB 2312 counts as traditional. Characters in both encodings are not counted.
Python ships both encodings.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

SCRIPTS = ("simplified", "traditional", "other")
_HAN_SHARE = 0.3
"""Least share of Han characters among the letters of a Chinese text."""
_FIRST_HAN = 0x4E00
_LAST_HAN = 0x9FFF


def script_of(text: str) -> str:
    """One of SCRIPTS. Chinese text in which neither script prevails counts as simplified."""
    simplified_only, traditional_only = _characters_of_one_script()
    letters = 0
    han = 0
    kana = 0
    simplified = 0
    traditional = 0
    for character, count in Counter(text).items():
        if not character.isalpha():
            continue
        letters += count
        if _FIRST_HAN <= ord(character) <= _LAST_HAN:
            han += count
            simplified += count * (character in simplified_only)
            traditional += count * (character in traditional_only)
        elif "\u3040" <= character <= "\u30ff":
            kana += count
    # Japanese text also has Han characters, but many kana.
    if han == 0 or han < _HAN_SHARE * letters or 4 * kana > han:
        return "other"
    return "traditional" if traditional > simplified else "simplified"


@lru_cache(maxsize=1)
def _characters_of_one_script() -> tuple[frozenset[str], frozenset[str]]:
    every = [chr(code) for code in range(_FIRST_HAN, _LAST_HAN + 1)]
    in_gb = {character for character in every if _has("gb2312", character)}
    in_big5 = {character for character in every if _has("big5", character)}
    return frozenset(in_gb - in_big5), frozenset(in_big5 - in_gb)


def _has(encoding: str, character: str) -> bool:
    return bool(character.encode(encoding, errors="ignore"))
