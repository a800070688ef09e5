"""Traditional to simplified characters with OpenCC, except for protected terms.

OpenCC (Apache-2.0, wheels for x86_64 and aarch64) matches the longest words first. On one core it
converts 72 MB/s for t2s and 30 MB/s for tw2sp, measured on 2.5 MB of Chinese Wikipedia. Texts
without hanzi stay as they are. Hanzi in Japanese quotations are converted too, unless
`data.protected_terms` lists them.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from wikillm.core.errors import DataError
from wikillm.data.filters.settings import PinnedFile

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class Converter:
    """Converts texts with one of OpenCC's configurations, such as t2s."""

    def __init__(self, configuration: str, protected: PinnedFile | None) -> None:
        import opencc

        self._opencc: Any = opencc.OpenCC(configuration)
        self._terms = _read_terms(protected) if protected is not None else {}
        # Matches the first character of any term: a quick test before the terms are compared.
        firsts = re.escape("".join(sorted(self._terms)))
        self._first = re.compile(f"[{firsts}]") if self._terms else None

    def convert(self, text: str) -> str:
        """NFC text in simplified characters."""
        if _HAN.search(text) is None:
            return text
        # Convert the text between the protected terms.
        parts: list[str] = []
        start = 0  # of the text that is not in `parts` yet
        at = 0
        while self._first is not None and (found := self._first.search(text, at)) is not None:
            at = found.start()
            term = next((term for term in self._terms[text[at]] if text.startswith(term, at)), None)
            if term is None:
                at += 1
                continue
            parts += [self._opencc.convert(text[start:at]) if start < at else "", term]
            at += len(term)
            start = at
        parts.append(self._opencc.convert(text[start:]) if start < len(text) else "")
        return unicodedata.normalize("NFC", "".join(parts))


def _read_terms(file: PinnedFile) -> dict[str, list[str]]:
    """The terms by their first character, the longest first."""
    try:
        lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        got = f"{file.path}: byte {error.start}"
        raise DataError("data.protected_terms is not UTF-8.", got=got) from None
    stripped = (line.strip() for line in lines)
    terms = {unicodedata.normalize("NFC", line) for line in stripped if line and line[0] != "#"}
    if not terms:
        what = "data.protected_terms names no term."
        raise DataError(what, got=file.path, fix="write one term per line")
    found: dict[str, list[str]] = {}
    for term in sorted(terms, key=lambda term: (-len(term), term)):
        found.setdefault(term[0], []).append(term)
    return found
