"""Remove the markup that the parser leaves: unpaired marks, quotes, switches, empty brackets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from wikillm.data.text.wikitext_names import CASED_SWITCHES, SWITCHES
from wikillm.data.text.wikitext_regions import NOWIKI

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff\u00ad"))
_SPACES = re.compile(r"[ \t\u00a0\u2000-\u200a\u202f]+")
_NESTED = 50  # depth of nested templates that are removed; deeper templates lose their braces only
_STRAY_TEMPLATE = re.compile(r"\{\{(?:\s*formatnum\s*:([^{}|]*))?[^{}]*\}\}", re.IGNORECASE)
_STRAY_MARKS = re.compile(  # `{x : |x|}` is a set
    r"\|?\}\}|\{\{|\[\[|\]\]|^[ \t:*#-]*(?:\{\||\|\})", re.MULTILINE
)
_QUOTED_LINE = re.compile(r"^.*?''.*$", re.MULTILINE)
_QUOTES = re.compile(r"('{2,})")
_STRAY_TAG = re.compile(  # known names only, since `List<int>` is text
    r"</?(?:ref|references|br|p|div|span|small|big|sup|sub|b|i|u|s|em|strong|center|font|table|tr"
    r"|td|th|ul|ol|li|dl|dd|dt|nowiki|noinclude|includeonly|onlyinclude|gallery|blockquote|poem"
    r"|code|tt|abbr|cite|math|var|hr|pre|syntaxhighlight)(?:\s[^<>\n]*)?/?\s*>",
    re.IGNORECASE,
)
_STRAY_BREAK = re.compile(r"<br\s*/\s*>", re.IGNORECASE)
_STRAY_SCRIPT = re.compile(r"(?<=[\w)\]])<(su[pb])(?:\s[^<>\n]*)?>(?=[\w+\-−])", re.IGNORECASE)
_STRAY_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)*([^\[\]|]*)\]\]")

# Possessive quantifiers that match only from the start of a run: linear time for any page.
_EMPTY_BRACKETS = re.compile(
    r"[(（〔【][\s,;:，；：、/·–—-]*+[)）〕】]"
)  # their content was a template
_AFTER_BRACKET = re.compile(r"(?<=[(（])[\s,;，；、]++")
_BEFORE_BRACKET = re.compile(r"(?<![\s,;，；、])[\s,;，；、]++(?=[)）])")
_BEFORE_MARK = re.compile(r"[ ]+([,;:.!?](?=[\s)]|$)|[，；：。！？、）])")
_BEFORE_MARK_IN_FRENCH = re.compile(r"[ ]+([,.](?=[\s)]|$))")
_EMPTY_ITEM = re.compile(r"^[ \t]*(?:[-*#:;•·][ \t]*)+$", re.MULTILINE)
_LEADING = re.compile(r"^[,;，；、]\s*", re.MULTILINE)  # after a template that began the paragraph
_GAP = re.compile(r"\n{3,}")

_TABLE_MARK = re.compile(r"^[ \t:*#-]*(?:\{\||\|\}|\|-|\|\+)", re.MULTILINE)
_TABLE_START = re.compile(r"[ \t:*#-]*\{\|")
_TABLE_END = re.compile(r"[ \t:*#-]*\|\}")
_CELL = re.compile(r"[ \t]*[|!]|" + _TABLE_END.pattern)
_ROW = re.compile(  # `|-5| = 5` and `|+1|` are text
    r"[ \t]*(?:\|\}|\|\+(?!\d)|\|-+[ \t]*(?:$|(?:style|class|id|v?align|bgcolor|width|height"
    r"|rowspan|colspan|scope|data-)))"
)

_SWITCH = re.compile(r"(__|＿＿)([^\W\d_](?:[^\W\d_]|_(?!_)){1,48})\1")


def without_switches(wikitext: str) -> str:
    """Remove switches such as `__NOTOC__`, in any case and language.

    Other words between double underscores, such as `__FILE__` and `__init__`, stay as they are.
    """
    if "__" not in wikitext and "＿＿" not in wikitext:
        return wikitext
    return _SWITCH.sub(lambda found: "" if _is_switch(found[2]) else found[0], wikitext)


def _is_switch(word: str) -> bool:
    # Words in Greek, Russian or Turkish capitals are switches: names in programs are ASCII.
    is_foreign = not word.isascii() and word.isupper()
    return is_foreign or word in CASED_SWITCHES or word.casefold() in SWITCHES


def remove_leftovers(text: str, *, is_french: bool = False) -> str:
    """The text without unpaired marks, with single spaces and one blank line between paragraphs.

    In French, a space before `:;!?` stays.
    """
    # Templates, links and tables that the parser could not pair.
    text = _SPACES.sub(" ", text.translate(_INVISIBLE))
    for _ in range(_NESTED):
        if "{{" not in text or (shorter := _STRAY_TEMPLATE.sub(r"\1", text)) == text:
            break
        text = shorter
    if "[[" in text:
        text = _STRAY_LINK.sub(r"\1", text)
    if _TABLE_MARK.search(text):
        text = "\n".join(_without_rows(text.split("\n")))
    # Single marks; a line with NOWIKI shows its marks.
    if NOWIKI in text:
        lines = text.split("\n")
        text = "\n".join(line if NOWIKI in line else _STRAY_MARKS.sub("", line) for line in lines)
    else:
        text = _STRAY_MARKS.sub("", text)
    if "<" in text:  # a `<sup>` that is never closed
        text = _STRAY_SCRIPT.sub(lambda tag: "^" if tag[1].lower() == "sup" else "_", text)
    # Quotes and tags, then empty brackets, spaces, empty items and blank lines.
    text = _STRAY_BREAK.sub("\n", _without_quotes(text))
    text = _STRAY_TAG.sub("", text).replace(NOWIKI, "")
    text = _EMPTY_BRACKETS.sub("", text)
    text = _BEFORE_BRACKET.sub("", _AFTER_BRACKET.sub("", text))
    before_mark = _BEFORE_MARK_IN_FRENCH if is_french else _BEFORE_MARK
    text = before_mark.sub(r"\1", _SPACES.sub(" ", text))
    text = "\n".join(line.strip() for line in text.split("\n"))
    return _GAP.sub("\n\n", _LEADING.sub("", _EMPTY_ITEM.sub("", text))).strip()


def _without_quotes(text: str) -> str:
    """Remove the apostrophes that mark italics and bold, by the rules of MediaWiki.

    Runs of two, three or five apostrophes are marks. A run of four shows one apostrophe, a longer
    run all apostrophes beyond five. When a line opens italics and bold and closes neither, as in
    `''Iliad'''s`, one run of three shows one apostrophe: the first run after a word of one letter,
    else the first run after a longer word.
    """
    if "''" not in text:
        return text
    return _QUOTED_LINE.sub(lambda line: _without_quotes_in_line(line[0]), text)


def _without_quotes_in_line(line: str) -> str:
    parts = _QUOTES.split(line)  # texts at even indexes, runs of apostrophes at odd indexes
    lengths = [len(run) for run in parts[1::2]]
    threes = [2 * at + 1 for at, length in enumerate(lengths) if length in (3, 4)]
    fives = sum(length >= 5 for length in lengths)
    parts[1::2] = ["'" * (1 if length == 4 else max(0, length - 5)) for length in lengths]
    if threes and (lengths.count(2) + fives) % 2 and (len(threes) + fives) % 2:
        parts[min(threes, key=lambda at: _priority(parts[at - 1] + parts[at]))] += "'"
    return "".join(parts)


def _priority(before: str) -> int:
    """0 after a word of one letter, 1 after a longer word, 2 after a space."""
    return 2 if before.endswith(" ") else int(before[-2:-1] != " ")


def _without_rows(lines: list[str]) -> Iterator[str]:
    """The lines without the rows of tables that the parser could not pair.

    A line that begins with `|` or `!` is text, with two exceptions: a table was opened before it,
    or its run of such lines has a row mark (`|-`, `|}`), since a template may open the table.
    """
    is_open = False
    for are_cells, group in groupby(lines, lambda line: _CELL.match(line) is not None):
        run = list(group)
        if not are_cells:
            for line in run:
                if _TABLE_START.match(line):
                    is_open = True
                else:
                    yield line
        elif is_open or any(_ROW.match(line) for line in run):
            for line in run:
                if end := _TABLE_END.match(line):
                    is_open = False
                    yield line[end.end() :]
        else:
            yield from run
