"""Texts as numbers: the kind of each character, and 64-bit hashes of units.

A unit is a hanzi, a kana, a hangul syllable, or a word. All functions are vectorised, with the same
results on every machine. The table of kinds comes from Unicode 3.2, which every Python ships
unchanged; a newer character counts as a symbol, except for newer hanzi. Case is folded by Python's
own table (Unicode 14 in 3.11, 15 in 3.12). Hashes are polynomials modulo 2^64 with an odd base,
mixed by splitmix64's finaliser (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
SPACE, LETTER, DIGIT, CJK, PUNCTUATION, SYMBOL = range(6)
KINDS = 6
_TABLE_SIZE = 0x30000  # planes above are private or rare hanzi
_KANA_AND_HANGUL = ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xAC00, 0xD7A3))
_HAN_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_BY_CATEGORY = {"L": LETTER, "M": LETTER, "N": DIGIT, "P": PUNCTUATION, "Z": SPACE}
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)
_STEP = 0xD1342543DE82EF95
_PIECE = 1 << 18  # characters that are hashed at a time, which bounds the memory


@cache
def _table() -> npt.NDArray[np.uint8]:
    unicode_3_2 = unicodedata.ucd_3_2_0
    kinds = [
        _BY_CATEGORY.get(unicode_3_2.category(chr(code))[0], SYMBOL) for code in range(_TABLE_SIZE)
    ]
    table = np.array(kinds, dtype=np.uint8)
    for first, last in (*_KANA_AND_HANGUL, *_HAN_RANGES):
        table[first : last + 1] = CJK
    for code in (0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85):
        table[code] = SPACE
    return table


def codes_of(text: str) -> npt.NDArray[np.uint32]:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def kinds_of(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """SPACE, LETTER, DIGIT, CJK, PUNCTUATION or SYMBOL for each code point."""
    found = _table()[np.minimum(codes, _TABLE_SIZE - 1)]
    found[codes >= _TABLE_SIZE] = SYMBOL
    found[(codes >= 0x30000) & (codes <= 0x3FFFF)] = CJK
    return found


def count_han(codes: npt.NDArray[np.uint32]) -> int:
    """Number of code points that are hanzi."""
    counts = (np.count_nonzero((codes >= low) & (codes <= high)) for low, high in _HAN_RANGES)
    return int(sum(counts))


def mix(values: Hashes) -> Hashes:
    """A bijection of 64-bit values that spreads them evenly."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def units_of(text: str) -> Hashes:
    """A hash per unit: each CJK character, each run of letters and digits. Case is ignored."""
    found = [_units_of_piece(codes_of(piece)) for piece in _pieces(text.casefold())]
    return np.concatenate([np.empty(0, dtype=np.uint64), *found])


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most `_PIECE` characters, cut after white space if there is any."""
    start = 0
    while len(text) - start > _PIECE:
        cut = max(text.rfind(" ", start, start + _PIECE), text.rfind("\n", start, start + _PIECE))
        end = cut + 1 if cut >= start else start + _PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def _units_of_piece(codes: npt.NDArray[np.uint32]) -> Hashes:
    kinds = kinds_of(codes)
    is_word = (kinds == LETTER) | (kinds == DIGIT)
    before = np.concatenate([[False], is_word[:-1]])
    starts = np.flatnonzero((is_word & ~before) | (kinds == CJK))
    if not len(starts):
        return np.empty(0, dtype=np.uint64)
    after = np.concatenate([is_word[1:], [False]])
    ends = np.flatnonzero((is_word & ~after) | (kinds == CJK)) + 1
    # The hash of codes[s:e] is the sum of code[i] * base^(i - s). It is computed as a difference of
    # prefix sums, multiplied by base^-s.
    terms = (codes.astype(np.uint64) + np.uint64(1)) * _powers(_BASE)[: len(codes)]
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms)])
    return mix((sums[ends] - sums[starts]) * _powers(_INVERSE)[starts])


@cache
def _powers(base: int) -> Hashes:
    powers = np.full(_PIECE, base, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def grams_of(units: Hashes, length: int) -> Hashes:
    """A hash per run of `length` units; if there are fewer units, one hash of them all."""
    length = min(length, len(units))
    if not length:
        return units
    total = np.zeros(len(units) - length + 1, dtype=np.uint64)
    for at in range(length):
        total = total * np.uint64(_STEP) + units[at : at + len(total)]
    return mix(total)
