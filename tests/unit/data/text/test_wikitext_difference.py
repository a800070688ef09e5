"""Against `filter_wiki` of gensim, on the real dump in its wheel: which words only one keeps.

Two programs that share no code lose different words. What WikiLLM drops on purpose is removed from
the page first, by a third, simple parser; then hardly a word may remain that only the other keeps.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from xml.etree import ElementTree

import pytest

from wikillm.cli.demo import find_source
from wikillm.data.sources.read import items_of
from wikillm.data.sources.sniff import sniff
from wikillm.data.text.wikitext import text_of_wikitext
from wikillm.data.text.wikitext_names import TAIL_SECTIONS

_WORD = re.compile(r"[^\W\d_]{2,}")
_HEADING = re.compile(r"(=+)\s*(.*?)\s*=+\s*$")
_CUT = re.compile(
    r"<!--.*?-->|<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref>|<gallery.*?</gallery>",
    re.DOTALL | re.IGNORECASE,
)
_HIDDEN_LINK = re.compile(r"\[\[\s*(?:file|image|category):", re.IGNORECASE)
_TABLE = re.compile(r"^[ :*#]*\{\|", re.MULTILINE)

EXAMINED = {
    # `[u]pholding`, `[t]he` and the like: the other drops the brackets
    "Anarchism": {"upholding"},
    "Animal Farm": {"changing"},
    "Appellate procedure in the United States": {"provides"},
    "Analysis of variance": {"we"},
    "Angolan Armed Forces": {"the"},
    "Algorithm": {"again"},
    "Afghanistan": {"the"},
    # words beside a template, which the other drops and so joins them; a[i] in code
    "ASCII": {"computersfollowing", "orderreadily", "implementedconverts", "ai"},
    # (SO₃H)_n and Δ_cH: where a word ends
    "Acid": {"hn"},
    "Alkane": {"δc"},
    "Apollo": {"haploun"},  # {{transl|grc|h}}aploun
    "Alkali metal": {"toc"},  # __TOC__
}
"""Words that only the other keeps, by article: each was looked up in the page and is not lost."""


def words_of(text: str) -> Counter[str]:
    """The words, and how often; CO₂ and CO2 are one word, as are x_i and xi."""
    plain = unicodedata.normalize("NFKC", text).replace("_", "").replace("^", "")
    return Counter(word.casefold() for word in _WORD.findall(plain))


def without_pairs(page: str, start: re.Pattern[str], opening: str, closing: str) -> str:
    """`page` without what begins like `start`, up to the mark that closes it."""
    kept = []
    at = 0
    marks = re.compile(f"{re.escape(opening)}|{re.escape(closing)}")
    for found in start.finditer(page):
        if found.start() < at:
            continue
        kept.append(page[at : found.start()])
        at = found.end()
        depth = 0
        for mark in marks.finditer(page, found.start()):
            depth += 1 if mark[0] == opening else -1
            if depth == 0:
                at = mark.end()
                break
    return "".join([*kept, page[at:]])


def reduced(page: str) -> str:
    """`page` without what is dropped on purpose: references, pictures, tables, link sections."""
    page = without_pairs(_CUT.sub("", page), _HIDDEN_LINK, "[[", "]]")
    page = without_pairs(page, _TABLE, "{|", "|}")
    kept: list[str] = []
    skipped = 0  # the level of the section that is left out
    for line in page.split("\n"):
        heading = _HEADING.match(line)
        if heading and len(heading[1]) <= skipped:
            skipped = 0
        if heading and not skipped and heading[2].casefold() in TAIL_SECTIONS:
            skipped = len(heading[1])
        if not skipped:
            kept.append(line)
    return "\n".join(kept)


def articles(every: int) -> list[tuple[str, str]]:
    source = sniff(find_source(None))
    found = []
    for _, payload, _ in items_of(source, 0, 1 << 24):
        page = ElementTree.fromstring(payload or b"<page/>")
        if page.findtext("ns") == "0" and page.find("redirect") is None:
            found.append((page.findtext("title") or "", page.findtext("revision/text") or ""))
    return found[::every]


@pytest.mark.deep
def test_hardly_a_word_is_lost_that_another_extractor_keeps(tmp_path, monkeypatch):
    filter_wiki = pytest.importorskip("gensim.corpora.wikicorpus").filter_wiki
    monkeypatch.chdir(tmp_path)
    total = only_ours = only_theirs = 0
    lost: dict[str, set[str]] = {}
    for title, page in articles(every=3):
        ours = words_of(text_of_wikitext(page))
        theirs = words_of(filter_wiki(reduced(page)))
        total += sum(ours.values())
        only_ours += sum((ours - theirs).values())
        only_theirs += sum((theirs - ours).values())
        # A heading goes with the text of its section.
        in_headings = words_of("\n".join(line for line in page.split("\n") if _HEADING.match(line)))
        lost[title] = {*(theirs - ours - in_headings)} - EXAMINED.get(title, set())
    assert total > 100_000
    assert only_theirs < 0.001 * total
    # Quotations, measures and foreign words in templates, which the other drops.
    assert only_ours < 0.04 * total
    assert {title: words for title, words in lost.items() if words} == {}
