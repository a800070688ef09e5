"""Tables of names in wikitext: link prefixes, sections of links, templates with running text.

The tables are in `wikitext_names.yaml`, which describes each table. Names are in lower case, except
`CASED_SWITCHES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_suffix(".yaml")
_TABLES: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))


def _names(table: str) -> frozenset[str]:
    return frozenset(name.strip() for name in _TABLES[table].split(","))


DROPPED_PREFIXES = _names("dropped_prefixes")
MORE_DROPPED_PREFIXES = _names("more_dropped_prefixes")
OTHER_PREFIXES = _names("other_prefixes")
INTERLANGUAGE_PREFIXES = _names("interlanguage_prefixes")
PROJECT_PREFIXES = _names("project_prefixes")
CONVERTED_LANGUAGES = _names("converted_languages")
SWITCHES = _names("switches")
CASED_SWITCHES = frozenset({"INDEX", "DISAMBIG", "START", "END"})
"""Switches that count in upper case only: `__index__` is a name in Python."""
REDIRECTS = _names("redirects")
TAIL_SECTIONS = _names("tail_sections")
AMBIGUOUS_SECTIONS = _names("ambiguous_sections")
FIRST_ARGUMENT = _names("first_argument")
PAGE_NAMES = _names("page_names")
QUOTES = _names("quotes")
AROUND: dict[str, str] = _TABLES["around"]
LITERALS: dict[str, str] = _TABLES["literals"]
RANGE_WORDS: dict[str, str] = _TABLES["range_words"]
PRINTED_UNITS: dict[str, str] = _TABLES["printed_units"]
