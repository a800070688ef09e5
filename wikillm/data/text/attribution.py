"""Write the attribution that a wiki's licence requires for redistributed text into the store.

`ATTRIBUTION.md` names the dumps, the licence and the form of a link. `attribution/NNNNN.tsv` has a
line per kept page of shard NNNNN: number of the source, byte offset of the page (as in the index of
the shard), page id, revision id, title. Only stores of MediaWiki sources have these files, and the
sources alone determine them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wikillm.core.files import write_atomic
from wikillm.core.printable import printable
from wikillm.data.text.clean import title_of
from wikillm.data.types import SourceFile

ATTRIBUTION_NAME = "ATTRIBUTION.md"
TITLES_FOLDER = "attribution"
_PAGE_ID = re.compile(rb"<id>\s*(\d+)\s*</id>")
_REVISION_ID = re.compile(rb"<revision>\s*<id>\s*(\d+)\s*</id>")
_DATE = re.compile(r"(?<!\d)(20\d\d)-?(\d\d)-?(\d\d)(?!\d)")


def write_titles(store: Path, number: int, pages: Sequence[tuple[int, int, bytes]]) -> None:
    """Write a line per kept page (source, offset, payload) of shard `number`, if it has pages."""
    if not pages:
        return
    lines = []
    for source, offset, page in pages:
        start = page[:4096]  # the ids come before the text
        found = (form.search(start) for form in (_PAGE_ID, _REVISION_ID))
        ids = [match[1].decode() if match else "" for match in found]
        title = printable(" ".join(title_of(page).split()))
        lines.append("\t".join([str(source), str(offset), *ids, title]) + "\n")
    folder = store / TITLES_FOLDER
    folder.mkdir(exist_ok=True)
    write_atomic(folder / f"{number:05d}.tsv", "".join(lines))


def write_attribution(store: Path, sources: Sequence[tuple[SourceFile, str]]) -> None:
    """Write `ATTRIBUTION.md` for the MediaWiki dumps among `sources`, given with their sha256."""
    parts = [_HEADING]
    for number, (source, digest) in enumerate(sources):
        if source.format != "mediawiki":
            continue
        site = source.site
        name = source.url or Path(source.path).name
        base = site.base.rpartition("/wiki/")[0] or "https://SITE"
        found = _DATE.search(name)
        date = "-".join(found.groups()) if found else "not in the name of the file"
        parts.append(
            f"\n## Source {number}: {site.name or 'a MediaWiki site'}"
            + (f" ({site.dbname})" if site.dbname else "")
            + f"\n\n- dump: `{name}`, {source.size} bytes, sha256 `{digest}`\n"
            + f"- date of the dump: {date}\n"
            + f"- the article TITLE with its authors: {base}/wiki/TITLE, then its history\n"
            + f"- the revision that was used: {base}/?oldid=REVISION\n"
        )
    if len(parts) > 1:
        write_atomic(store / ATTRIBUTION_NAME, printable("".join(parts)))


_HEADING = """# Attribution

The text of this token store comes from the wikis below and was changed: markup, tables, references
and pictures were removed, characters were normalised and, where the manifest says so, converted;
pages were left out.

Text of Wikipedia and its sister projects is by their contributors and is licensed under
CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), older revisions also under
CC BY-SA 3.0 and the GFDL. Another MediaWiki site has a licence of its own: see its pages. If you
redistribute the text, name the licence, link to the articles and say that the text was changed.

`attribution/NNNNN.tsv` lists the pages of shard NNNNN: source, byte offset in the decompressed
dump, page id, revision id, title.
"""
