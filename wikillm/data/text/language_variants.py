"""Resolve MediaWiki's language conversion markup, `-{...}-`, to what a reader of zh-cn sees.

The syntax is described in https://www.mediawiki.org/wiki/Writing_systems/Syntax. Only the markup is
resolved; `filters.convert` converts whole texts from traditional to simplified characters.
"""

from __future__ import annotations

import re

PREFERRED = ("zh-cn", "zh-hans-cn", "zh-hans", "zh-sg", "zh-my", "zh")
"""Variants in order of preference; if a rule has none of them, its first variant is used."""

_OPEN = r"-\{(?!\{(?!\{))"  # `-{{` is a hyphen before a template
_CLOSE = r"(?:(?<!\})|(?<=\}\}))\}-"  # `}}-` is a hyphen after a template
_INNERMOST = re.compile(rf"{_OPEN}((?:(?!{_OPEN}|{_CLOSE}).)*){_CLOSE}", re.DOTALL)
_UNPAIRED = re.compile(rf"{_OPEN}|{_CLOSE}")
_CODE = r"(?:zh|sr|sh|gan|wuu|kk|ku|iu|tg|uz|crh|shi|ban)(?:-[a-z]+)*"
_FLAGS = re.compile(
    rf"\s*(-|[A-Z]?(?:\s*;\s*[A-Z])*|{_CODE}(?:\s*;\s*{_CODE})*\s*;?)\s*\|", re.IGNORECASE
)
_VARIANT = re.compile(
    rf"(?:^|;)\s*(?:[^;:|]*=>\s*)?({_CODE})\s*:",
    re.DOTALL | re.IGNORECASE,
)
_SILENT = frozenset("THD-")  # page title, hidden rule, description, removed rule: they show nothing


def resolve_variants(wikitext: str) -> str:
    """`-{zh-hans:简;zh-hant:繁}-` -> `简`; `-{R|XML}-` -> `XML`; `-{H|...}-` -> nothing."""
    for _ in range(8):  # each round resolves the innermost rules; deeper nesting does not occur
        if "-{" not in wikitext:
            break
        wikitext, count = _INNERMOST.subn(lambda match: _shown(match[1]), wikitext)
        if not count:
            break
    return wikitext


def without_unpaired(wikitext: str) -> str:
    """Remove the marks that `resolve_variants` leaves because they have no partner."""
    return _UNPAIRED.sub("", wikitext) if "-{" in wikitext or "}-" in wikitext else wikitext


def _shown(rule: str) -> str:
    """The text that a reader of zh-cn sees for the inside of `-{...}-`."""
    flags = _FLAGS.match(rule)
    if flags:
        letters = {flag.strip().upper() for flag in flags[1].split(";")}
        if letters & _SILENT:
            return ""
        rule = rule[flags.end() :]
        if "R" in letters:  # shown as it is
            return rule
    marks = list(_VARIANT.finditer(rule))
    if not marks:
        return rule
    ends = [*(mark.start() for mark in marks[1:]), len(rule.rstrip().removesuffix(";"))]
    texts = {
        mark[1].lower(): rule[mark.end() : end].strip()
        for mark, end in zip(marks, ends, strict=True)
    }
    chosen = next((variant for variant in PREFERRED if variant in texts), marks[0][1].lower())
    return texts[chosen]
