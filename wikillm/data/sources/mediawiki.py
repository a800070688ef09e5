"""A MediaWiki export: its `<page>` elements, the newest revision of each, and its `<siteinfo>`.

Items are as in `json_array`; one core reads 1,300 MB/s. A dump with the full history holds every
revision. Older revisions are dropped while a page is read, so that a page of gigabytes takes no
more memory than its newest revision. `<siteinfo>` is read once, from the start of the file, and is
passed to the workers with the source.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from wikillm.core.errors import DataError
from wikillm.data.types import Item, WikiSite

_PAGE = re.compile(rb"<page[\s>]")
_PAGE_END = b"</page>"
_DECLARATION = re.compile(rb"<!(DOCTYPE|ENTITY)", re.IGNORECASE)
_TAG_BYTES = 16  # at least as long as every tag that is searched for
_REVISION = re.compile(rb"<revision[\s>]")
_REVISION_END = b"</revision>"
_TIMESTAMP = re.compile(rb"<timestamp>\s*([^<\s]*)")
_ID = re.compile(rb"<id>\s*(\d{1,18})")
_COMPACT_BYTES = 8 << 20  # growth of a page between two searches for older revisions

_FIRST_PAGE = re.compile(r"<page[\s>]")
_LANGUAGE = re.compile(r"<mediawiki\b[^>]*\sxml:lang\s*=\s*[\"']([^\"']*)[\"']")
_NAMESPACE = re.compile(
    r"<namespace\b[^>]*?\skey\s*=\s*[\"']\s*(-?\d+)\s*[\"'][^>]*?(?<!/)>([^<]*)</namespace\s*>"
)
_INDEX_LINE = re.compile(r"(\d{1,15}):\d{1,12}:.+")
_INDEX_LINES = 50  # lines that are checked
_MIN_INDEX_OFFSET = 100  # the first stream of a dump holds <siteinfo>, which is longer


def split_pages(pieces: Iterator[bytes], start: int, limit: int, name: str) -> Iterator[Item]:
    """The `<page>` elements of a MediaWiki export (in its text, `<` is always written `&lt;`).

    A payload holds the newest revision only; offsets and sizes are those of the whole page.

    Raises DataError for a DOCTYPE or entity declaration (expanding entities is how an XML bomb
    works; exports have none) and for a file that ends before `</mediawiki>`.
    """
    buffer = b""
    base = start  # offset of buffer[0]
    at = 0  # everything before it has been processed
    page: _GrowingPage | None = None
    is_complete = False
    for piece in pieces:
        buffer += piece
        while True:
            # Between pages: find the next one, and look for declarations and the end of the file.
            if page is None:
                begin = _PAGE.search(buffer, at)
                gap = buffer[at : begin.start() if begin else len(buffer)]
                if _DECLARATION.search(gap):
                    raise DataError(
                        "An XML file declares a document type or entities; "
                        "MediaWiki exports do not.",
                        got=f"{name}, near byte {base + at}",
                        fix="use a dump as https://dumps.wikimedia.org offers it",
                    )
                is_complete = is_complete or b"</mediawiki>" in gap
                if begin is None:
                    at = max(at, len(buffer) - _TAG_BYTES)
                    break
                at = begin.start()
                page = _GrowingPage(base + at, limit)
                is_complete = False
            # In a page: find its end, or keep what cannot be the start of its end tag.
            end = buffer.find(_PAGE_END, at)
            if end < 0:
                safe = max(at, len(buffer) - _TAG_BYTES)
                page.keep(buffer[at:safe])
                at = safe
                break
            end += len(_PAGE_END)
            yield page.offset, page.finish(buffer[at:end]), base + end - page.offset
            page = None
            at = end
        buffer = buffer[at:]
        base += at
        at = 0
    if not is_complete:
        last = "" if page is None else f", the last page starts at byte {page.offset}"
        raise DataError(
            "An XML export is cut off: it ends before </mediawiki>.",
            got=f"{name}: {base + len(buffer)} bytes{last}",
            fix="download it again, and compare its checksum",
        )


class _GrowingPage:
    """A page that is read in parts. The older revisions found so far are dropped."""

    def __init__(self, offset: int, limit: int) -> None:
        self.offset = offset
        self._limit = limit
        self._kept = b""
        self._is_lost = False
        self._unseen = 0  # bytes since the last search for older revisions

    def keep(self, part: bytes) -> None:
        """Take the next bytes of the page, which is not complete yet."""
        if self._is_lost:
            return
        self._kept += part
        self._unseen += len(part)
        if self._unseen >= min(_COMPACT_BYTES, self._limit):
            self._unseen = 0
            self._kept = with_newest_revision(self._kept)
            # Room for the newest revision so far and an incomplete one, each up to the limit.
            if len(self._kept) > 2 * self._limit + _COMPACT_BYTES:
                self._kept = b""
                self._is_lost = True

    def finish(self, part: bytes) -> bytes | None:
        """The whole record; None when it is longer than the limit."""
        if self._is_lost:
            return None
        page = with_newest_revision(self._kept + part)
        return page if len(page) <= self._limit else None


def with_newest_revision(page: bytes) -> bytes:
    """The page without its older revisions; `page` itself when it has at most one.

    The newest revision has the latest timestamp; among equal timestamps, the highest id. The page
    may be cut off after any complete revision.
    """
    first = _REVISION.search(page)
    if first is None or page.find(b"<revision", first.end()) < 0:
        return page
    newest = b""
    newest_key = (b"", 0)
    at = first.start()
    while (end := page.find(_REVISION_END, at)) >= 0:
        end += len(_REVISION_END)
        revision = page[at:end]
        stamp = _TIMESTAMP.search(revision)
        number = _ID.search(revision)
        # The time is ISO 8601 in UTC: it sorts as text.
        key = (stamp[1] if stamp else b"", int(number[1]) if number else 0)
        if key >= newest_key:
            newest = revision
            newest_key = key
        at = end
    return page[: first.start()] + newest + page[at:]


def read_site(head: str) -> WikiSite:
    """The site of an export that begins with `head`. Missing or cut-off elements stay empty."""
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
    """Refuse the index of a multistream dump: lines of `offset:page id:title`, no text.

    Lines that start with a time of day (`12:30:45`) are not refused: their first numbers are small
    and not sorted.
    """
    lines = text.split("\n")[:_INDEX_LINES]
    if len(lines) > 1:
        lines.pop()  # the last line may be cut off
    entries = [_INDEX_LINE.fullmatch(line.rstrip("\r")) for line in lines]
    offsets = [int(entry[1]) for entry in entries if entry]
    if len(offsets) < len(lines) or offsets[0] < _MIN_INDEX_OFFSET or offsets != sorted(offsets):
        return
    raise DataError(
        "A file is the index of a multistream dump (offset:page id:title), not its text.",
        got=f"{path} starts with {lines[0][:60]!r}",
        fix="name the dump itself: the same name without -index, ending in .xml.bz2",
    )
