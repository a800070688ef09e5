"""The newest revision of a page of a MediaWiki export.

A dump with the full history holds every revision of a page. Older ones are dropped while the page is read, so that a
page of gigabytes costs no more memory than its newest revision, and so that whatever looks at the record later (title
list, filters) sees one revision.
"""

from __future__ import annotations

import re

_REVISION = re.compile(rb"<revision[\s>]")
_REVISION_END = b"</revision>"
_TIMESTAMP = re.compile(rb"<timestamp>\s*([^<\s]*)")
_COMPACT_BYTES = (
    8 << 20
)  # a page is searched for older revisions each time it has grown by so many bytes


def with_newest_revision(page: bytes) -> bytes:
    """The page without its older revisions; `page` itself when it has at most one.

    The newest is the one with the latest timestamp, and the later one in the file where that does not decide. The page
    may be cut off after any complete revision. In its text `<` is always written `&lt;`.
    """
    first = _REVISION.search(page)
    if first is None or page.find(b"<revision", first.end()) < 0:
        return page
    newest = b""
    newest_time = b""
    at = first.start()
    while (end := page.find(_REVISION_END, at)) >= 0:
        end += len(_REVISION_END)
        revision = page[at:end]
        stamp = _TIMESTAMP.search(revision)
        time = stamp[1] if stamp else b""  # ISO 8601 in UTC: sorts as text
        if not newest or time >= newest_time:
            newest = revision
            newest_time = time
        at = end
    return page[: first.start()] + newest + page[at:]


class GrowingPage:
    """A page that is being read. `front` is what is kept of its bytes before the buffer."""

    def __init__(self, offset: int, limit: int) -> None:
        self.offset = offset
        self._limit = limit
        self._front = b""
        self._is_lost = False
        self._unseen = 0  # bytes that came since the last search for older revisions

    def keep(self, part: bytes) -> None:
        """Take the next bytes of the page, which is not complete yet."""
        if self._is_lost:
            return
        self._front += part
        self._unseen += len(part)
        if self._unseen >= min(_COMPACT_BYTES, self._limit):
            self._unseen = 0
            self._front = with_newest_revision(self._front)
            # The newest revision so far, and one that is not complete yet: each may be as long as the limit.
            if len(self._front) > 2 * self._limit + _COMPACT_BYTES:
                self._front = b""
                self._is_lost = True

    def finish(self, part: bytes) -> bytes | None:
        """The whole record; None when it is longer than the limit."""
        if self._is_lost:
            return None
        page = with_newest_revision(self._front + part)
        return page if len(page) <= self._limit else None
