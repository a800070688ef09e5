"""What a MediaWiki export says about its wiki: the root element's language and `<siteinfo>`. And files that are not an export: the
index beside a multistream dump.

Read once, from the head of the file, when a source is looked into; it then travels with the source, so that a worker
that gets pages from the middle of a dump knows the same names.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from wikillm.core.errors import DataError
from wikillm.data.types import WikiSite

_FIRST_PAGE = re.compile(r"<page[\s>]")
_LANGUAGE = re.compile(r"<mediawiki\b[^>]*\sxml:lang\s*=\s*[\"']([^\"']*)[\"']")
_NAMESPACE = re.compile(
    r"<namespace\b[^>]*?\skey\s*=\s*[\"']\s*(-?\d+)\s*[\"'][^>]*?(?<!/)>([^<]*)</namespace\s*>"
)
_INDEX_LINE = re.compile(r"(\d{1,15}):\d{1,12}:.+")
_INDEX_LINES = 50  # that are looked at
_LEAST_INDEX_OFFSET = 100  # the first stream of a dump holds <siteinfo>, which is longer


def read_site(head: str) -> WikiSite:
    """The site of an export that begins with `head`. What is missing or cut off stays empty."""
    page = _FIRST_PAGE.search(head)
    head = head[: page.start()] if page else head
    language = _LANGUAGE.search(head)
    names = ((int(key), _plain(name)) for key, name in _NAMESPACE.findall(head))
    return WikiSite(
        name=_element(head, "sitename"),
        dbname=_element(head, "dbname"),
        base=_element(head, "base"),
        language=_plain(language[1]) if language else "",
        namespaces=tuple((key, name) for key, name in names if name),
    )


def _element(head: str, name: str) -> str:
    found = re.search(rf"<{name}>(.*?)</{name}>", head, re.DOTALL)
    return _plain(found[1]) if found else ""


def _plain(text: str) -> str:
    return " ".join(html.unescape(text).split())


def refuse_dump_index(path: Path, text: str) -> None:
    """Refuse the index that Wikimedia puts beside a multistream dump: lines of `offset:page id:title`, no text.

    Times of day (`12:30:45`) have smaller numbers in the first field, and do not only grow.
    """
    lines = text.split("\n")[:_INDEX_LINES]
    if len(lines) > 1:
        lines.pop()  # the last line may be cut off
    entries = [_INDEX_LINE.fullmatch(line.rstrip("\r")) for line in lines]
    offsets = [int(entry[1]) for entry in entries if entry]
    if len(offsets) < len(lines) or offsets[0] < _LEAST_INDEX_OFFSET or offsets != sorted(offsets):
        return
    dump = re.sub(
        r"-index\d*\.txt",
        lambda found: found[0].replace("-index", "").replace("txt", "xml"),
        path.name,
    )
    raise DataError(
        "A file is the index of a multistream dump (offset:page id:title), not its text.",
        got=f"{path} starts with {lines[0][:60]!r}",
        fix=f"data.path={path.with_name(dump)}   (the dump that the index belongs to)"
        if dump != path.name
        else "name the dump that the index belongs to: the same name without -index, ending in .xml.bz2",
    )
