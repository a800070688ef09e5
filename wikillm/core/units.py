"""Quantities as people write them: "2.6B" parameters, "80GiB" of memory, "1h02m".

Counts have decimal suffixes (K, M, B, T). Sizes have decimal (KB, MB, GB, TB) or binary suffixes
(KiB, MiB, GiB, TiB). Parsing is exact to a byte; formatting keeps three or four significant digits.
"""

from __future__ import annotations

import re
from fractions import Fraction

_COUNT = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_DECIMAL = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_QUANTITY = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]{1,2})?)\s*([A-Za-z]*)")


def _parse(text: str | int | float, suffixes: dict[str, int], kind: str, example: str) -> int:
    typed = str(text).strip()
    match = _QUANTITY.fullmatch(typed) if len(typed) < 400 else None  # Python converts 4,300 digits
    if match is None or match[2].upper() not in suffixes:
        raise ValueError(f"{text!r} is not a {kind}; write it like {example}")
    # Fractions are exact; in floats 2.01 x 1000 is not 2010.
    value = Fraction(match[1].replace("_", "")) * suffixes[match[2].upper()]
    # 7.9 GiB is no whole number of bytes: the fraction of a byte is dropped.
    if value.denominator != 1 and match[2].upper() not in _BINARY:
        raise ValueError(f"{text!r} is not a whole {kind}; write it like {example}")
    return int(value)


def parse_count(text: str | int | float) -> int:
    """`"2.6B"` -> 2_600_000_000. Raises ValueError with an example of the correct form."""
    return _parse(text, _COUNT, "count", '500_000, "100M" or "2.6B"')


def parse_size(text: str | int | float) -> int:
    """`"80GiB"` -> 85_899_345_920 bytes; a number without a suffix is in bytes.

    Raises ValueError with an example of the correct form.
    """
    return _parse(text, _DECIMAL | _BINARY, "size in bytes", '4096, "64MiB" or "80GB"')


def format_count(value: float) -> str:
    """123_277_824 -> "123.3M"; below 10,000 the number itself."""
    for suffix in ("T", "B", "M", "K"):
        if abs(value) >= _COUNT[suffix] and abs(value) >= 10_000:
            return f"{value / _COUNT[suffix]:.4g}{suffix}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_size(size: float) -> str:
    """Bytes with a binary suffix: 8_589_934_592 -> "8 GiB"."""
    for suffix in ("TiB", "GiB", "MiB", "KiB"):
        if abs(size) >= _BINARY[suffix.upper()]:
            number = size / _BINARY[suffix.upper()]
            return f"{number:.3g} {suffix}" if abs(number) < 999.5 else f"{number:.0f} {suffix}"
    return f"{size:.0f} B"


def format_seconds(seconds: float) -> str:
    """72.4 -> "1m12s"; below a minute with one decimal: "7.2s"."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{secs:02d}s"
