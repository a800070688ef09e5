"""Wikitext to text that reads like the article: about 2.2 MB of wikitext per second and core (an English dump).

Built on mwparserfromhell. Kept: prose, list items ("- "), section headings as lines of their own, the text of
links, templates that stand inside sentences (`wikitext_names`), short plain formulas. Left out: other templates,
tables, references, pictures with their captions, categories, galleries, formulas in TeX, comments, sections of
links and sources, headings of sections that have no text left. Parameters of templates and pages elsewhere are
unknown here, so a transcluded text is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import mwparserfromhell
from mwparserfromhell.nodes import Argument, ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

from wikillm.data.language_variants import resolve_variants
from wikillm.data.wikitext_names import (
    DROPPED_PREFIXES,
    FIRST_ARGUMENT,
    LITERALS,
    QUOTES,
    RANGE_WORDS,
    TAIL_SECTIONS,
)

# References and comments go before parsing: they are a third of an English article and half of the parser's time.
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_REFERENCE_TAG = re.compile(r"<(/?)ref\b[^<>]*>", re.IGNORECASE)
_SWITCH = re.compile(r"__[A-Z]{3,}__|__[\u4e00-\u9fff]{2,}__")  # __NOTOC__, __无目录__

_DROPPED_TAGS = frozenset(
    [
        "ref",
        "references",
        "gallery",
        "chem",
        "ce",
        "timeline",
        "score",
        "syntaxhighlight",
        "source",
        "table",
        "tr",
        "td",
        "th",
        "caption",
        "imagemap",
        "inputbox",
        "templatedata",
        "graph",
        "hiero",
        "categorytree",
        "style",
        "script",
        "includeonly",
        "indicator",
        "mapframe",
        "maplink",
        "templatestyles",
        "img",
        "video",
        "audio",
        "section",
    ]
)
_BLOCK_TAGS = frozenset("p div blockquote center ul ol dl poem pre li dd dt hr".split())  # noqa: SIM905
_PLAIN_FORMULA = re.compile(r"[\w\s+\-=<>().,*/'|]{1,40}")
_INTERWIKI = re.compile(r"[a-z]{2,3}(-[a-z-]+)?|simple|wikt|wikipedia|commons|s|d|meta")


_BRACKETS = (  # opening and closing marks of each kind
    re.compile(r"(\{\{)|\}\}"),
    re.compile(r"(\[)|\]"),
    re.compile(r"(^[ :*#]*\{\|)|^[ :*#]*\|\}", re.MULTILINE),
    re.compile(r"(<(?!(?:br|hr|li|p|dd|dt|wbr|img)\b)[a-z]\w*\b(?![^<>]*/>))|</[a-z]", re.IGNORECASE),
)
_MAX_OPEN = 200  # at any place; an article has a dozen. The parser takes 0.1 s then, and grows with the square


class DamagedWikitext(ValueError):
    """So many marks are never closed that parsing would take minutes."""


def text_of_wikitext(wikitext: str) -> str:
    """The article's text, paragraphs separated by blank lines. Empty when nothing readable is left.

    Raises DamagedWikitext for a page whose marks do not pair at all.
    """
    wikitext = _without_references(_COMMENT.sub("", wikitext.replace("\r\n", "\n")))
    wikitext = _SWITCH.sub("", resolve_variants(wikitext))
    _refuse_unpaired(wikitext)
    article = _Article()
    article.walk(mwparserfromhell.parse(wikitext, skip_style_tags=True))
    return article.text()


def _refuse_unpaired(wikitext: str) -> None:
    for marks in _BRACKETS:
        depth = 0
        for mark in marks.finditer(wikitext):
            depth = depth + 1 if mark[1] else max(0, depth - 1)
            if depth > _MAX_OPEN:
                raise DamagedWikitext(f"more than {_MAX_OPEN} times {mark[0]!r} without its end")


def _without_references(wikitext: str) -> str:
    """Cut `<ref ...>...</ref>` and `<ref ... />` in one pass; of one that is never closed, the tag only."""
    kept: list[str] = []
    at, opened = 0, None  # text before `at` is dealt with; `opened` is the end of a start tag without its end yet
    for tag in _REFERENCE_TAG.finditer(wikitext):
        if opened is None:
            kept.append(wikitext[at : tag.start()])
            at = tag.end()
            if not tag[1] and not tag[0].endswith("/>"):
                opened = tag.end()
        elif tag[1]:
            at, opened = tag.end(), None
    kept.append(_REFERENCE_TAG.sub("", wikitext[at:]))
    return "".join(kept)


@dataclass(slots=True)
class _Section:
    level: int
    title: str
    parts: list[str] = field(default_factory=list)


class _Article:
    """Collects the text of a page, section by section."""

    def __init__(self) -> None:
        self.sections = [_Section(1, "")]
        self._skipped_level: int | None = None  # inside a tail section of this level

    def walk(self, code: Wikicode) -> None:
        for node in code.nodes:
            if isinstance(node, Heading):
                self._heading(node)
            elif self._skipped_level is None:
                parts = self.sections[-1].parts
                parts.append(_render(node, at_line_start=not parts or parts[-1].endswith("\n")))

    def _heading(self, node: Heading) -> None:
        if self._skipped_level is not None and node.level > self._skipped_level:
            return
        title = _tidy(_text(node.title)).replace("\n", " ")
        self._skipped_level = node.level if title.casefold().rstrip(":：") in TAIL_SECTIONS else None
        if self._skipped_level is None:
            self.sections.append(_Section(node.level, title))

    def text(self) -> str:
        kept: list[str] = []
        deeper = 99  # the level of the nearest following heading that is kept
        for section in reversed(self.sections):
            body = _tidy("".join(section.parts))
            if not body and not deeper > section.level:
                continue
            if not body and deeper == 99:
                continue
            kept.append("\n".join(part for part in (section.title, body) if part))
            deeper = section.level
        return "\n\n".join(reversed(kept)).strip()


def _text(code: Wikicode | None) -> str:
    if code is None:
        return ""
    parts: list[str] = []
    for node in code.nodes:
        parts.append(_render(node, at_line_start=bool(parts) and parts[-1].endswith("\n")))
    return "".join(parts)


def _render(node: object, at_line_start: bool) -> str:
    if isinstance(node, Text):
        return str(node.value)
    if isinstance(node, Wikilink):
        return _wikilink(node)
    if isinstance(node, Tag):
        return _tag(node, at_line_start)
    if isinstance(node, Template):
        return _template(node)
    if isinstance(node, ExternalLink):
        return _text(node.title) if node.brackets else ""
    if isinstance(node, HTMLEntity):
        return _entity(node)
    if isinstance(node, Heading):  # inside a tag; a page's own are handled by _Article
        return f"\n{_text(node.title).strip()}\n"
    if isinstance(node, Argument):
        return _text(node.default)
    return ""  # comments


def _entity(node: HTMLEntity) -> str:
    try:
        return str(node.normalize())
    except (ValueError, KeyError, OverflowError):
        return ""


def _wikilink(node: Wikilink) -> str:
    target = str(node.title).strip()
    prefix, colon, rest = target.partition(":")
    if colon and prefix:
        name = prefix.strip().casefold().replace("_", " ")
        if name in DROPPED_PREFIXES or (node.text is None and _INTERWIKI.fullmatch(name)):
            return ""
    if node.text is not None:
        return _text(node.text)
    target = _text(node.title).strip().lstrip(":")
    return rest.partition("|")[0] if not prefix and rest.startswith("Category:") else target


def _tag(node: Tag, at_line_start: bool) -> str:
    name = str(node.tag).strip().casefold()
    if node.wiki_markup in ("*", "#"):
        return "- " if at_line_start else ""
    if node.wiki_markup in (":", ";"):
        return ""
    if name == "br":
        return "\n"
    if name in _DROPPED_TAGS:
        return ""
    if name == "math":
        formula = str(node.contents).strip()
        return formula if _PLAIN_FORMULA.fullmatch(formula) else ""
    inside = _text(node.contents)
    if name in _BLOCK_TAGS:
        return f"\n{'- ' if name == 'li' else ''}{inside.strip()}\n"
    return inside


def _template(node: Template) -> str:
    name = str(node.name).strip().casefold().replace("_", " ")
    if name.startswith("formatnum:"):
        return name.partition(":")[2]
    values = [_text(param.value).strip() for param in node.params if not param.showkey]
    if name in LITERALS and not values:
        return LITERALS[name]
    named = {str(param.name).strip(): param for param in node.params if param.showkey}
    if name in QUOTES:
        quoted = (
            values[0] if values else _text(named[key].value) if (key := _first(named, "text", "quote", "1")) else ""
        )
        return f"\n{quoted.strip()}\n"
    if not values:
        return _text(named["1"].value).strip() if "1" in named and name in FIRST_ARGUMENT else ""
    return _inline_template(name, values)


def _inline_template(name: str, values: list[str]) -> str:
    """Templates with unnamed arguments that are part of a sentence; all others give nothing."""
    if name in FIRST_ARGUMENT or (name.startswith(("lang-", "link-")) and len(name) <= 12):
        return values[0]
    if name in ("lang", "transl", "transliteration", "color", "colour", "fontcolor", "font color", "langx", "rtl-lang"):
        return values[-1] if len(values) < 4 else values[1]
    if name in ("tsl", "translink", "link", "internal link helper"):  # {{tsl|en|foreign|local|shown}}
        return next((value for value in (values[3:4] + values[2:3] + values[1:2]) if value), "")
    if name in ("convert", "cvt"):
        if len(values) >= 4 and values[1] in RANGE_WORDS:
            return f"{values[0]}{RANGE_WORDS[values[1]]}{values[2]} {values[3]}"
        return " ".join(values[:2])
    if name in ("frac", "sfrac", "fraction"):
        return {1: "1/{0}", 2: "{0}/{1}"}.get(len(values), "{0} {1}/{2}").format(*values)
    if name in ("circa", "c.", "ca"):
        return f"c. {values[0]}"
    if name in ("as of", "截至"):
        return f"As of {values[0]}" if name == "as of" else f"截至{values[0]}"
    if name == "gaps":
        return "".join(values)
    return ""


def _first(named: Mapping[str, object], *keys: str) -> str | None:
    return next((key for key in keys if key in named), None)


_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200e\u200f\u2060\ufeff\u00ad"))
_SPACES = re.compile(r"[ \t\u00a0\u2000-\u200a\u202f]+")
_NESTED = 50  # rounds from the inside out; what is nested deeper loses its braces only
_LEFT_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_LEFT_TABLE = re.compile(r"^[ :*#-]*(?:\{\||\|\}|\|-|\|\+).*$|^[|!].*$", re.MULTILINE)
_LEFT_MARKS = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|'{2,}|-\{|\}-")
_LEFT_TAG = re.compile(  # known names only: `List<int>` is text
    r"</?(?:ref|references|br|p|div|span|small|big|sup|sub|b|i|u|s|em|strong|center|font|table|tr|td|th|ul|ol|li|dl|dd|dt"
    r"|nowiki|noinclude|includeonly|onlyinclude|gallery|blockquote|poem|code|tt|abbr|cite|math|var|hr)(?:\s[^<>\n]*)?/?>",
    re.IGNORECASE,
)
_LEFT_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)*([^\[\]|]*)\]\]")
# Possessive runs that start only where the run does: linear time, whatever a page holds.
_HOLLOW = re.compile(r"[(（〔【][\s,;:，；：、/·–—-]*+[)）〕】]")  # brackets whose content was a template
_AFTER_BRACKET = re.compile(r"(?<=[(（])[\s,;，；、]++")
_BEFORE_BRACKET = re.compile(r"(?<![\s,;，；、])[\s,;，；、]++(?=[)）])")
_BEFORE_MARK = re.compile(r"[ ]+([,;:.!?](?=[\s)]|$)|[，；：。！？、）])")
_EMPTY_ITEM = re.compile(r"^[ \t]*(?:[-*#:;•·][ \t]*)+$", re.MULTILINE)
_LEADING = re.compile(r"^[,;，；、]\s*", re.MULTILINE)  # what followed a template that opened the paragraph
_GAP = re.compile(r"\n{3,}")


def _tidy(text: str) -> str:
    """White space as in plain text, and nothing left of markup that the parser could not pair."""
    text = _SPACES.sub(" ", text.translate(_INVISIBLE))
    for _ in range(_NESTED):
        if "{{" not in text or (shorter := _LEFT_TEMPLATE.sub("", text)) == text:
            break
        text = shorter
    if "[[" in text:
        text = _LEFT_LINK.sub(r"\1", text)
    text = _LEFT_TABLE.sub("", text)
    text = _LEFT_TAG.sub("", _LEFT_MARKS.sub("", text))
    text = _HOLLOW.sub("", text)
    text = _BEFORE_BRACKET.sub("", _AFTER_BRACKET.sub("", text))
    text = _BEFORE_MARK.sub(r"\1", _SPACES.sub(" ", text))
    text = "\n".join(line.strip() for line in text.split("\n"))
    return _GAP.sub("\n\n", _LEADING.sub("", _EMPTY_ITEM.sub("", text))).strip()
