"""Rules that drop a text, each with its own reason in the funnel, for Chinese and English.

Shares count the characters that are not white space. In the weight of a text, a CJK character
counts as three letters, close to its content and its size in UTF-8. The rules are similar to those
of Gopher (Rae et al., 2021, table A1) and C4 (Raffel et al., 2020). The limits were chosen by
looking at the articles that they drop from Wikipedia. They are constants: raise `QUALITY_VERSION`
with each change.
"""

from __future__ import annotations

import re

import numpy as np

from wikillm.data.filters.characters import (
    CJK,
    DIGIT,
    KINDS,
    LETTER,
    PUNCTUATION,
    SPACE,
    SYMBOL,
    codes_of,
    count_han,
    grams_of,
    kinds_of,
    units_of,
)

MIN_WEIGHT = 150  # letters, a CJK character counting as three
MIN_LETTERS = 0.5
MAX_DIGITS = 0.3
MAX_SYMBOLS = 0.15
MAX_PUNCTUATION = 0.35
MAX_REPEATED_LINES = 0.3  # share of characters in lines that occurred before
MAX_REPEATED_RUNS = 0.4  # share of runs of RUN_UNITS that occurred before
RUN_UNITS = 10
MAX_LIST_LINES = 0.9  # share of list items among at least MIN_LINES lines
MIN_LINES = 10
MIN_HAN = 0.3  # share of letters that are hanzi, for data.quality=zh
MIN_LATIN = 0.5  # share of letters that are Latin, for data.quality=en

_LIST_ITEM = re.compile(r"[-*•·+‣◦]\s|\d{1,3}[.、)]\s?")
_DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:disambig(?:uation)?(?: cleanup)?|disamb|dab|hndis|geodis|schooldis|hospitaldis|"
    r"numberdis|mathdab|"
    r"human name disambiguation|place name disambiguation|airport disambiguation|surname|"
    r"消歧义|消歧義|消歧义页|消歧義頁|消歧|人名消歧义|人名消歧義|地名消歧义|地名消歧義|"
    r"begriffsklärung|homonymie|desambiguación|曖昧さ回避)\s*[|}]",
    re.IGNORECASE,
)
_DISAMBIGUATION_TITLE = re.compile(
    r"[(（](?:disambiguation|消歧义|消歧義|消歧義頁|消歧义页)[)）]\s*$", re.IGNORECASE
)


def page_fault(wikitext: str, title: str) -> str | None:
    """Why a MediaWiki page is dropped as a whole, or None. `wikitext` may be the page's XML."""
    if _DISAMBIGUATION.search(wikitext) or _DISAMBIGUATION_TITLE.search(title):
        return "disambiguation page"
    return None


def text_fault(text: str, rules: str) -> str | None:
    """The first rule that a text breaks, in words, or None. `rules` is data.quality."""
    codes = codes_of(text)
    counts = np.bincount(kinds_of(codes), minlength=KINDS)
    visible = len(codes) - int(counts[SPACE])
    letters = int(counts[LETTER]) + int(counts[CJK])
    if int(counts[LETTER]) + 3 * int(counts[CJK]) < MIN_WEIGHT:
        return "few letters in all"
    if letters < MIN_LETTERS * visible:
        return "few letters for its length"
    if counts[DIGIT] > MAX_DIGITS * visible:
        return "many digits"
    if counts[SYMBOL] > MAX_SYMBOLS * visible:
        return "many symbols"
    if counts[PUNCTUATION] > MAX_PUNCTUATION * visible:
        return "much punctuation"
    fault = _language_fault(rules, codes, letters) or _line_fault(text, visible)
    if fault is None and _repeated_runs(text) > MAX_REPEATED_RUNS:
        return "repeated runs of words"
    return fault


def _language_fault(rules: str, codes: np.ndarray, letters: int) -> str | None:
    if rules == "zh" and count_han(codes) < MIN_HAN * letters:
        return "few hanzi"
    if rules == "en":
        latin = int(np.count_nonzero((codes < 0x250) & (kinds_of(codes) == LETTER)))
        if latin < MIN_LATIN * letters:
            return "few Latin letters"
    return None


def _line_fault(text: str, visible: int) -> str | None:
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        if line in seen:
            repeated += sum(not char.isspace() for char in line)
        seen.add(line)
    if repeated > MAX_REPEATED_LINES * visible:
        return "repeated lines"
    items = sum(_LIST_ITEM.match(line) is not None for line in lines)
    if len(lines) >= MIN_LINES and items > MAX_LIST_LINES * len(lines):
        return "hardly more than a list"
    return None


def _repeated_runs(text: str) -> float:
    """Share of the runs of `RUN_UNITS` units that occurred before in the text."""
    units = units_of(text)
    if len(units) < 2 * RUN_UNITS:
        return 0.0
    runs = grams_of(units, RUN_UNITS)
    return 1.0 - len(np.unique(runs)) / len(runs)
