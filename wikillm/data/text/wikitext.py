"""Turn wikitext into text that reads like the article, with mwparserfromhell (2.1 MB/s per core).

The text keeps prose, list items (with "- "), section headings as lines of their own, the text of
links, templates inside sentences (`wikitext_templates`), code, the content of `<nowiki>` and short
plain formulas. It drops other templates, tables, references, pictures with their captions,
categories, galleries, formulas in TeX, comments, sections of links and sources, and headings of
sections without text. Text that a page takes from other pages (transclusion) is lost, because only
the page itself is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice, takewhile
from urllib.parse import unquote

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode

from wikillm.data.text import wikitext_names
from wikillm.data.text.language_variants import resolve_variants, without_unpaired
from wikillm.data.text.namespaces import SiteNames, prefix_of, site_names
from wikillm.data.text.wikitext_leftovers import remove_leftovers, without_switches
from wikillm.data.text.wikitext_regions import (
    ENTITY,
    NOWIKI,
    Regions,
    character_of,
    is_marked,
    set_apart,
)
from wikillm.data.text.wikitext_scripts import subscript, superscript
from wikillm.data.text.wikitext_templates import is_function, text_of_function, text_of_template
from wikillm.data.types import WikiSite

# Tags such as <ref> and <math> were removed by `wikitext_regions` before parsing.
_DROPPED_TAGS = frozenset(("table", "tr", "td", "th", "caption", "img", "video", "audio"))
_BLOCK_TAGS = frozenset(
    (
        *("p", "div", "blockquote", "center", "ul", "ol", "dl", "poem", "li", "dd", "dt", "hr"),
        *("h1", "h2", "h3", "h4", "h5", "h6"),
    )
)
_PROSE = re.compile(r"^[^*#:;{|!<=\n][^\n]{60}", re.MULTILINE)  # lists of sources have no prose
_HIDING_STYLE = re.compile(r"display\s*:\s*none\b", re.IGNORECASE)
_URL = re.compile(r"(?<![a-zA-Z+.-])(?:[a-zA-Z+.-]++:)?//[!-~]*")
"""A URL. Chinese text may follow it without a space."""
_RAISING_STYLE = re.compile(r"vertical-align\s*:\s*(super|sub)\b", re.IGNORECASE)
_NO_HEADING = re.compile(r"\n(?==)(?![^\n]*=[ \t]*(?:\n|$))")  # a line `=...` without final `=`
_INVALID_IN_TITLES = frozenset("<>[]{}|\ufffd")
_BEFORE_TABLE = re.compile(r"\n[ \t:*#;]++(?=\{\|)")
"""The parser finds tables only at the start of a line."""
_MARKUP = frozenset("<>[]{}|'=*#:;!-_&")

_BRACKETS = (  # by kind: opening (group 1) and closing brackets or tags
    re.compile(r"(\{\{)|\}\}"),
    re.compile(r"(\[)|\]"),
    re.compile(r"(^[ :*#]*\{\|)|^[ :*#]*\|\}", re.MULTILINE),
    re.compile(
        r"(<(?!(?:br|hr|li|p|dd|dt|wbr|img)\b)[a-z]\w*\b(?![^<>]*/>))|</[a-z]", re.IGNORECASE
    ),
)
_MAX_OPEN = 200  # articles have a dozen; parsing 200 takes 0.1 s, and the time is quadratic


class DamagedWikitext(ValueError):
    """The page has more than `_MAX_OPEN` unclosed brackets or tags: parsing would take minutes."""


def text_of_wikitext(wikitext: str, site: WikiSite = WikiSite(), title: str = "") -> str:
    """The article's text, paragraphs separated by blank lines. Empty when nothing readable is left.

    Args:
        site: determines the meaning of link prefixes.
        title: shown for `{{PAGENAME}}`.

    Raises DamagedWikitext for a page with more than 200 unclosed brackets or tags of one kind.
    """
    names = site_names(site)
    regions = Regions()
    # Regions are set apart first: no later rule may see the content of `<nowiki>`, and references
    # would take half of the parser's time.
    wikitext = set_apart(wikitext.replace("\r\n", "\n"), regions)
    if names.converts:
        wikitext = without_unpaired(resolve_variants(wikitext))
    wikitext = _NO_HEADING.sub(f"\n{NOWIKI}", without_switches(f"\n{wikitext}"))
    wikitext = _BEFORE_TABLE.sub("\n", wikitext)
    _refuse_unpaired(wikitext)
    article = _Article(_Renderer(names, regions, title), names.is_french)
    article.walk(_parsed(wikitext))
    return regions.restore(article.text()).strip()


def _parsed(wikitext: str) -> Wikicode:
    try:
        return mwparserfromhell.parse(wikitext, skip_style_tags=True)
    except ParserError as error:
        raise DamagedWikitext(str(error)) from error


def _refuse_unpaired(wikitext: str) -> None:
    """Raise DamagedWikitext for more than `_MAX_OPEN` unclosed brackets or tags of one kind."""
    for marks in _BRACKETS:
        depth = 0
        for mark in marks.finditer(wikitext):
            depth = depth + 1 if mark[1] else max(0, depth - 1)
            if depth > _MAX_OPEN:
                raise DamagedWikitext(f"more than {_MAX_OPEN} times {mark[0]!r} without its end")


@dataclass(slots=True)
class _Section:
    level: int
    title: str
    parts: list[str] = field(default_factory=list)


class _Article:
    """Collects the text of a page, section by section."""

    def __init__(self, renderer: _Renderer, is_french: bool) -> None:
        self._renderer = renderer
        self._is_french = is_french
        self._sections = [_Section(1, "")]
        self._skipped_level: int | None = None  # level of the current section if it is dropped

    def walk(self, code: Wikicode) -> None:
        for at, node in enumerate(code.nodes):
            if isinstance(node, nodes.Heading):
                self._heading(node, islice(code.nodes, at + 1, None))
            elif self._skipped_level is None:
                self._renderer.add(node, self._sections[-1].parts, "\n")

    def _heading(self, node: nodes.Heading, rest: Iterable[object]) -> None:
        """Begin a section, or drop it if it is a list of links or sources; `rest` follows it."""
        if self._skipped_level is not None and node.level > self._skipped_level:
            return
        title = self._plain(self._renderer.text(node.title)).replace("\n", " ")
        name = title.casefold().rstrip(":：")
        is_tail = name in wikitext_names.TAIL_SECTIONS
        if is_tail and name in wikitext_names.AMBIGUOUS_SECTIONS:
            section = takewhile(lambda node: not isinstance(node, nodes.Heading), rest)
            is_tail = _PROSE.search("".join(map(str, section))) is None
        self._skipped_level = node.level if is_tail else None
        if self._skipped_level is None:
            self._sections.append(_Section(node.level, title))

    def _plain(self, text: str) -> str:
        return remove_leftovers(text, is_french=self._is_french)

    def text(self) -> str:
        kept: list[str] = []
        deeper = 99  # the level of the nearest following heading that is kept
        for section in reversed(self._sections):
            body = self._plain("".join(section.parts))
            # A heading without text is kept only above a deeper section that is kept.
            if not body and (deeper == 99 or deeper <= section.level):
                continue
            kept.append("\n".join(part for part in (section.title, body) if part))
            deeper = section.level
        return "\n\n".join(reversed(kept)).strip()


class _Renderer:
    """Renders the parser's nodes as text. `before` is the text in front of a node."""

    def __init__(self, names: SiteNames, regions: Regions, title: str) -> None:
        self._names = names
        self._regions = regions
        self._title = title

    def text(self, code: Wikicode | None) -> str:
        if code is None:
            return ""
        parts: list[str] = []
        for node in code.nodes:
            self.add(node, parts, "")
        return "".join(parts)

    def add(self, node: object, parts: list[str], start: str) -> None:
        """Append the text of `node` to `parts`; `start` is the text in front of the first part."""
        before = parts[-1] if parts else start
        shown = self._shown(node, before)
        if shown[:1] == before[-1:] == "'":  # keep two apostrophes from joining into markup
            parts.append(NOWIKI)
        if shown:
            parts.append(shown)

    def _shown(self, node: object, before: str) -> str:
        if isinstance(node, nodes.Text):
            text = str(node.value)
            return ENTITY.sub(lambda found: self._entity(found[0]), text) if "&" in text else text
        if isinstance(node, nodes.Wikilink):
            return self._wikilink(node)
        if isinstance(node, nodes.Tag):
            return self._tag(node, before)
        if isinstance(node, nodes.Template):
            return self._template(node, before)
        if isinstance(node, nodes.ExternalLink):
            if node.brackets:
                return self.text(node.title)
            url = str(node.url)
            if "//" not in url:  # the parser treats `Tel:010-1234` as a URL too
                return self.text(node.url)
            rest = _URL.sub("", url)
            return self.text(_parsed(rest)) if rest else ""
        if isinstance(node, nodes.HTMLEntity):
            return self._entity(str(node))
        if isinstance(node, nodes.Heading):  # inside a tag; _Article handles the others
            return f"\n{self.text(node.title).strip()}\n"
        if isinstance(node, nodes.Argument):
            return self.text(node.default)
        return ""  # comments

    def _entity(self, entity: str) -> str:
        character = character_of(entity)
        return self._regions.protect(character) if character in _MARKUP else character

    def _wikilink(self, node: nodes.Wikilink) -> str:
        target = unquote(str(node.title).strip())
        if is_marked(target):  # with <nowiki> in the target, the link is shown literally
            parts = [self.text(part) for part in (node.title, node.text) if part is not None]
            return self._as_written("[[", parts, "]]")
        prefix = prefix_of(target)
        if prefix and prefix in self._names.hidden:
            return ""
        if node.text is None and "{{!}}" in target:
            return self.text(_parsed(target.partition("{{!}}")[2]))
        if node.text is not None and str(node.text):  # `[[title|]]` shows the title
            return self.text(node.text)
        if prefix in self._names.others:
            return self.text(node.title).strip()
        if prefix in wikitext_names.INTERLANGUAGE_PREFIXES:
            return ""
        title = self.text(node.title).strip().lstrip(":")
        if "%" in title:
            decoded = unquote(title)
            if decoded.isprintable() and _INVALID_IN_TITLES.isdisjoint(decoded):
                title = decoded
        if "''" in title:
            return self._regions.protect(self._regions.restore(title))
        if prefix not in wikitext_names.PROJECT_PREFIXES:
            return title
        title = title.partition(":")[2].strip()
        return "" if prefix_of(title) in self._names.hidden else title

    def _as_written(self, start: str, parts: list[str], end: str) -> str:
        return self._regions.protect(start) + "|".join(parts) + self._regions.protect(end)

    def _tag(self, node: nodes.Tag, before: str) -> str:
        name = str(node.tag).strip().casefold()
        if node.wiki_markup in ("*", "#"):
            return "- " if before.endswith("\n") else ""
        if node.wiki_markup in (":", ";"):  # `; term : definition` on one line
            return "" if before in ("", "- ") or before.endswith("\n") else "\n"
        if name == "br":
            return "\n"
        if name in _DROPPED_TAGS:
            return ""
        style = "".join(map(str, node.attributes)) if node.attributes else ""
        if name == "rp" or _HIDING_STYLE.search(style):
            return ""
        inside = self.text(node.contents)
        if name == "rt":  # ruby: the pronunciation, shown above the word
            return f"({inside.strip()})" if inside.strip() else ""
        if name == "span" and (raising := _RAISING_STYLE.search(style)):
            name = "sup" if raising[1].casefold() == "super" else "sub"
        if name in ("sup", "sub"):
            plain = self._regions.restore(inside).replace(NOWIKI, "")
            shown = superscript(plain, before) if name == "sup" else subscript(plain, before)
            return inside if shown == plain else shown
        if name in _BLOCK_TAGS:
            return f"\n{'- ' if name == 'li' else ''}{inside.strip()}\n"
        return inside

    def _template(self, node: nodes.Template, before: str) -> str:
        name = str(node.name).strip()
        function, colon, _ = name.partition(":")
        if is_marked(function):
            return self._as_written("{{", [self.text(node.name), *map(str, node.params)], "}}")
        values = [self.text(param.value).strip() for param in node.params if not param.showkey]
        named = {str(param.name).strip(): param.value for param in node.params if param.showkey}

        # Named arguments are rendered on demand: infoboxes have dozens, few are shown.
        def argument(key: str) -> str:
            return self.text(named.get(key)).strip()

        name = name.casefold().replace("_", " ")
        for prefix in ("template:", "模板:", "樣板:"):
            name = name.removeprefix(prefix).lstrip()
        if name in wikitext_names.PAGE_NAMES:
            return self._title
        if colon and is_function(function):
            first = self.text(node.name).partition(":")[2].strip()
            others = [
                str(param) if param.showkey else self.text(param.value) for param in node.params
            ]
            return text_of_function(function, first, [other.strip() for other in others])
        shown = text_of_template(name, values, argument, before)
        # {{'}} and {{!}} show a character that would otherwise be markup.
        is_literal = name in wikitext_names.LITERALS and not _MARKUP.isdisjoint(shown)
        return self._regions.protect(shown) if is_literal else shown
