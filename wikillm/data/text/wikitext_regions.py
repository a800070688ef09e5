"""Set apart the regions of a page that are not wikitext, before any other rule reads the page.

Comments, references and the content of tags such as `<gallery>` are cut. The content of `<nowiki>`,
`<pre>`, `<code>`, `<syntaxhighlight>`, `<source>`, `<math>` and `<chem>` is text or a formula, even
if it looks like markup: `Regions` keeps it, and a short mark replaces it until the page is text. If
tags overlap, the tag that starts first counts, as in MediaWiki
(https://www.mediawiki.org/wiki/Preprocessor_ABNF). If a tag is never closed, its content stays in
the page. The page is read in one linear pass.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from html.entities import html5

# Marks consist of characters that XML forbids, so no dump holds them.
NOWIKI = "\x01"
"""Replaces `<nowiki>`, which separates markup characters; its line keeps unpaired marks as text."""
_OPEN = "\x02"
_CLOSE = "\x03"
_EMPTY = "\x04"
"""Put between the brackets of `main()`, since brackets that are left empty later are removed."""
_MARK = re.compile(f"{NOWIKI}?{_OPEN}(\\d+){_CLOSE}")
_FORBIDDEN = dict.fromkeys(map(ord, f"{NOWIKI}{_OPEN}{_CLOSE}{_EMPTY}"))

_LITERAL = ("nowiki", "pre", "code", "syntaxhighlight", "source")
_FORMULA = ("math", "chem", "ce")
_CUT = (
    *("ref", "references", "gallery", "timeline", "score", "imagemap", "inputbox", "templatedata"),
    *("graph", "hiero", "categorytree", "mapframe", "maplink", "templatestyles", "style", "script"),
    *("indicator", "includeonly", "section", "dynamicpagelist", "dpl", "rss", "youtube"),
)
_TRANSPARENT = ("noinclude", "onlyinclude", "translate", "tvar")
"""Tags that are cut before headings and lists are recognized. Their content stays."""
_NAMES = sorted((*_LITERAL, *_FORMULA, *_CUT, *_TRANSPARENT), key=len, reverse=True)
_CUT_ALONE = {"ref", "references", "gallery", "includeonly", *_LITERAL, *_FORMULA} - {"source"}
"""Tags that are cut even without a partner; a lone `<source>` is often a word about HTML."""
_TAG = re.compile(  # <ref name="a<b"> and <ref name=a<!-- b -->> are tags
    rf"<!--|<(/?)({'|'.join(_NAMES)})(?=[\s/>])"
    r"([^<>]*(?:=\s*\"[^\"<>\n]*<[^\"<>\n]*\"[^<>]*|<!--[^<>]*--)?)>",
    re.IGNORECASE,
)
_ENDS = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in _NAMES}
_NOWIKI_PAIR = re.compile(r"<nowiki\s*>(.*?)</nowiki\s*>|<nowiki\s*/>", re.IGNORECASE | re.DOTALL)
_CODE_START = re.compile(r"<code(?=[\s>])[^<>]*>", re.IGNORECASE)
_HEADING = re.compile(r"\n==")
_REST_OF_LINE = re.compile(r"(?:[ \t]*<!--[^-]*+(?:-(?!->)[^-]*+)*+-->)*+[ \t]*\n")
_INLINE = re.compile(r"\binline\b|\benclose\s*=\s*[\"']?none", re.IGNORECASE)
_NOWIKI_START = re.compile(r"<nowiki\s*>", re.IGNORECASE)
_STYLE_PAIR = re.compile(r"<(span|var|font|small)\b[^<>]*>([^<>]*)</\1\s*>", re.IGNORECASE)
_QUOTED = re.compile(r"('{2,5})(?!')([^'\n]+)\1(?!')")
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
"""An entity; without its semicolon it is text."""
_CHARACTERS = ((9, 10), (32, 126), (160, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x10FFFF))
_PLAIN_FORMULA = re.compile(r"[\w\s+\-=<>().,*/'|^{}\[\]:;!?%°→⇌]{1,60}")


class Regions:
    """Texts that were set apart from a page, and the marks that replace them."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, bool]] = []

    def protect(self, text: str, *, is_block: bool = False) -> str:
        """A mark to replace `text`, which no rule may change. A block gets its own lines."""
        self._texts.append((text, is_block))
        return f"{_OPEN}{len(self._texts) - 1}{_CLOSE}"

    def restore(self, text: str) -> str:
        """The text with its marks replaced by their content."""
        text = _MARK.sub(self._restored, text) if _OPEN in text else text
        return text.replace(_EMPTY, "")

    def _restored(self, mark: re.Match[str]) -> str:
        text, is_block = self._texts[int(mark[1])]
        if not is_block:
            return text
        before = "" if mark.start() == 0 or mark.string[mark.start() - 1] == "\n" else "\n"
        after = "" if mark.end() == len(mark.string) or mark.string[mark.end()] == "\n" else "\n"
        return f"{before}{text}{after}"


def is_marked(text: str) -> bool:
    """Whether something was set apart in `text`."""
    return NOWIKI in text or _OPEN in text


def _next(matches: list[re.Match[str]], at: int) -> re.Match[str] | None:
    """The first of the sorted `matches` that starts at `at` or later."""
    number = bisect_left(matches, at, key=re.Match.start)
    return matches[number] if number < len(matches) else None


def set_apart(wikitext: str, regions: Regions) -> str:
    """The page without comments and cut regions, with marks in place of what `regions` keeps."""
    if not _FORBIDDEN.keys().isdisjoint(map(ord, set(wikitext))):
        wikitext = wikitext.translate(_FORBIDDEN)
    wikitext = wikitext.replace("()", f"({_EMPTY})")
    kept: list[str] = []
    at = 0  # everything before this index has been processed
    is_line_start = True  # whether the line up to `at` holds only spaces and comments
    ends: dict[str, list[re.Match[str]]] = {}  # end tags by name, searched once per page
    headings = list(_HEADING.finditer(wikitext))
    while (tag := _TAG.search(wikitext, at)) is not None:
        text = wikitext[at : tag.start()]
        kept.append(text)
        at = tag.end()
        is_line_start = (is_line_start or "\n" in text) and not text[text.rfind("\n") + 1 :].strip()
        # A comment is cut; without an end, it hides the rest of the page.
        if tag[2] is None:
            end = wikitext.find("-->", at)
            at = len(wikitext) if end < 0 else end + 3
            # A line that holds only comments is cut with its line break.
            if is_line_start and (line_end := _REST_OF_LINE.match(wikitext, at)):
                at = line_end.end()
                kept[-1] = kept[-1].rstrip(" \t")
            else:
                is_line_start = False
            continue
        # Tags without content of their own.
        is_line_start = False
        name = tag[2].lower()
        if name in _TRANSPARENT:
            continue
        if not tag[1] and tag[3].endswith("/"):
            kept.append(NOWIKI if name == "nowiki" or text.endswith("'") else "")
            continue
        # A tag with content: find its end, and cut or keep the content.
        end_tag = None
        if not tag[1]:
            if name not in ends:
                ends[name] = list(_ENDS[name].finditer(wikitext))
            end_tag = _next(ends[name], at)
            if end_tag is not None and name in ("ref", "code"):
                end_tag = _end_of_text(name, wikitext, at, end_tag, _next(headings, at))
        if end_tag is None:
            kept.append("" if name in _CUT_ALONE else tag[0])
            continue
        region = _replacement(name, tag[3], wikitext[at : end_tag.start()], regions)
        # Apostrophes on both sides of a reference are not one mark.
        kept.append(region or (NOWIKI if text.endswith("'") else ""))
        at = end_tag.end()
    kept.append(wikitext[at:])
    return "".join(kept)


def _end_of_text(
    name: str, wikitext: str, start: int, end: re.Match[str], heading: re.Match[str] | None
) -> re.Match[str] | None:
    """The end tag of the `<ref>` or `<code>` whose text begins at `start`.

    `end` is the next end tag of that name. The result is None when `end` belongs to another tag,
    because a heading, or text and another `<code>`, precede it. An end tag in a `<nowiki>` does not
    count.
    """
    if heading is not None and heading.start() < end.start():
        return None
    nested = _CODE_START.search(wikitext, start, end.start()) if name == "code" else None
    if nested is not None and wikitext[start : nested.start()].strip():
        return None
    starts = _NOWIKI_START.finditer(wikitext, start, end.start())
    opened = max((mark.end() for mark in starts), default=-1)
    if opened < 0 or _ENDS["nowiki"].search(wikitext, opened, end.start()):
        return end
    bound = wikitext.find(f"<{name}", end.end())
    bound = bound if bound >= 0 else len(wikitext)
    shown = _ENDS["nowiki"].search(wikitext, end.end(), bound)
    return shown and _ENDS[name].search(wikitext, shown.end(), bound) or end


def _replacement(name: str, attributes: str, content: str, regions: Regions) -> str:
    """The mark that replaces a region in the page; empty if the region is cut."""
    if name == "nowiki":
        return NOWIKI + regions.protect(_decoded(content)) if content else NOWIKI
    if name in _FORMULA:
        formula = _decoded(content).replace(_EMPTY, "").strip()
        return regions.protect(formula) if _PLAIN_FORMULA.fullmatch(formula) else ""
    if name in ("syntaxhighlight", "source"):
        code = content.strip("\r\n").rstrip()
        is_block = _INLINE.search(attributes) is None
        return regions.protect(code, is_block=is_block) if code else ""
    if name == "pre":
        shown = _decoded(_NOWIKI_PAIR.sub(r"\1", content)).strip("\r\n").rstrip()
        return regions.protect(shown, is_block=True) if shown.strip() else ""
    if name == "code":
        return regions.protect(_decoded(_code(content))) if content.strip() else content
    return ""


def _code(content: str) -> str:
    """The content of `<code>` as shown: MediaWiki interprets nowiki, styles and entities in it."""
    if (nested := _CODE_START.match(content.lstrip())) and nested.end() < len(content.strip()):
        content = content.lstrip()[nested.end() :]
    shown: list[str] = []
    at = 0
    for pair in _NOWIKI_PAIR.finditer(content):
        shown += [_without_styles(content[at : pair.start()]), pair[1] or ""]
        at = pair.end()
    return "".join([*shown, _without_styles(content[at:])])


def _without_styles(content: str) -> str:
    return _QUOTED.sub(r"\2", _STYLE_PAIR.sub(r"\2", content))


def _decoded(text: str) -> str:
    return ENTITY.sub(lambda entity: character_of(entity[0]), text) if "&" in text else text


def character_of(entity: str) -> str:
    """The character of an entity that `ENTITY` matches; the entity itself if it names none."""
    name = entity[1:-1]
    if name[0] != "#":
        return html5.get(f"{name};", entity)
    code = int(name[2:], 16) if name[1] in "xX" else int(name[1:])
    is_character = any(first <= code <= last for first, last in _CHARACTERS)
    return chr(code) if is_character else entity
