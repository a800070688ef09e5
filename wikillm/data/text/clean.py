"""Turn a raw record into clean text, or into the reason why it has none.

For JSON and CSV the text is the value under `data.text_key`; for plain text and Parquet it is the
record itself. A MediaWiki page gives a text if it is in the article namespace and no redirect: the
title, a blank line and the article (`wikitext`). All text is stripped and NFC-normalised, so that
hashes, byte counts and tokens refer to the same characters.

`cleaner_version` is part of a store's fingerprint: raise it with every change that changes the text
of any record.
"""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from functools import partial

import orjson

from wikillm.data.sources.decompress import BOM
from wikillm.data.sources.json_value import KINDS, parse_json
from wikillm.data.sources.mediawiki import with_newest_revision
from wikillm.data.sources.tables import parse_row
from wikillm.data.text.namespaces import prefix_of, site_names
from wikillm.data.text.wikitext import DamagedWikitext, text_of_wikitext
from wikillm.data.text.wikitext_names import REDIRECTS
from wikillm.data.types import Dropped, WikiSite

_VERSION = 2
_WIKITEXT_VERSION = 3  # for stores with MediaWiki exports; raising it leaves other stores valid
MIN_ARTICLE_CHARACTERS = 64
"""Articles with fewer characters are template stubs, lists of links or soft redirects."""

Clean = Callable[[bytes, int], str | Dropped]
"""Takes a record and its offset; returns its text or why it has none. Never raises."""


def cleaner(format: str, text_key: str, site: WikiSite = WikiSite()) -> Clean:
    """The function that cleans records of a format; `site` is the wiki of a MediaWiki export.

    Raises ValueError for an unknown format.
    """
    if format == "mediawiki":
        return partial(_clean_page, site=site)
    if format in ("text", "blocks", "lines", "parquet"):
        return _clean_plain
    if format == "csv":
        return partial(_clean_row, text_key=text_key)
    if format in ("json", "jsonl"):
        return partial(_clean_json, text_key=text_key)
    raise ValueError(f"no cleaner for the format {format!r}")


def cleaner_version(formats: Iterable[str]) -> int:
    """The version of the cleaner for sources of these formats."""
    return _WIKITEXT_VERSION if "mediawiki" in formats else _VERSION


def title_of(page: bytes) -> str:
    """The title of a MediaWiki page; raises ParseError for a page that is not well-formed."""
    return ElementTree.fromstring(page).findtext("title") or ""


def _bad(payload: bytes, reason: str, detail: str = "") -> Dropped:
    return Dropped(reason, len(payload), is_bad=True, detail=detail)


def _not_utf8(payload: bytes, error: UnicodeDecodeError) -> Dropped:
    detail = f"{error.reason} at byte {error.start} of the record"
    return _bad(payload, "not UTF-8", detail)


def _clean_json(payload: bytes, offset: int, text_key: str) -> str | Dropped:
    line = payload.removeprefix(BOM) if offset == 0 else payload
    may_have_surrogates = False  # orjson refuses half of a UTF-16 pair, json accepts it
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        may_have_surrogates = True
        try:  # slower than orjson, but accepts NaN, and its messages describe the mistake
            value = parse_json(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            return _not_utf8(payload, error)
        except ValueError as error:
            return _bad(payload, "not JSON", str(error))
    if not isinstance(value, dict):
        return _bad(payload, "not a JSON object", f"it is {KINDS.get(type(value), 'a string')}")
    if text_key not in value:
        if len(value) == 1 and isinstance(value.get("index", value.get("create")), dict):
            return Dropped("index line of an Elasticsearch bulk file", len(payload))
        keys = ", ".join(map(repr, list(value)[:10]))
        return _bad(payload, f"no key {text_key!r}", f"it has {keys}")
    text = value[text_key]
    if not isinstance(text, str):
        return _bad(payload, f"{text_key!r} is not a string", f"it is {KINDS[type(text)]}")
    if may_have_surrogates and any("\ud800" <= letter <= "\udfff" for letter in text):
        detail = "half of a UTF-16 pair, as in \\ud83d without its partner"
        return _bad(payload, "lone surrogate", detail)
    return _normalized(payload, text)


def _normalized(payload: bytes, text: str) -> str | Dropped:
    if "\x00" in text:
        return _bad(payload, "NUL character in the text")
    return unicodedata.normalize("NFC", text.strip()) or Dropped("empty", len(text))


def _clean_plain(payload: bytes, offset: int) -> str | Dropped:
    text = payload.removeprefix(BOM) if offset == 0 else payload
    try:
        return _normalized(payload, text.decode("utf-8").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        return _not_utf8(payload, error)


def _clean_row(payload: bytes, _: int, text_key: str) -> str | Dropped:
    row = payload.rpartition(b"\n")[0]
    try:
        values = parse_row(payload)
    except UnicodeDecodeError as error:
        return _not_utf8(row, error)
    except ValueError as error:
        return _bad(row, "not a row of this table", str(error))
    if text_key not in values:
        return _bad(row, f"no key {text_key!r}")
    return _normalized(row, values[text_key])


_REDIRECT = re.compile(r"\s*#\s?([^\s#:\[\]]+)\s*:?\s*\[\[")


def _is_redirect(wikitext: str) -> bool:
    """Find `#REDIRECT [[title]]` in any language, for exports without `<redirect>` (schema 0.3)."""
    found = _REDIRECT.match(wikitext)
    # `İ` becomes two characters: `i` and a dot above.
    return found is not None and found[1].casefold().replace("i\u0307", "i") in REDIRECTS


def _clean_page(payload: bytes, _: int, site: WikiSite) -> str | Dropped:
    try:
        # A page alone has no DOCTYPE, so no entity can expand.
        page = ElementTree.fromstring(with_newest_revision(payload))
    except ElementTree.ParseError as error:
        return _bad(payload, "not well-formed XML", str(error))
    title = page.findtext("title") or ""
    text = page.find("revision/text")
    wikitext = "" if text is None or text.text is None else text.text

    def dropped(reason: str) -> Dropped:
        return Dropped(reason, len(wikitext))

    namespace = page.findtext("ns")
    if namespace is None:  # an old export: the prefix of the title shows the namespace
        is_article = prefix_of(title) not in site_names(site).others
    else:
        is_article = namespace.strip() == "0"
    if not is_article:
        return dropped("other namespace")
    if page.find("redirect") is not None or _is_redirect(wikitext):
        return dropped("redirect")
    if (page.findtext("revision/model") or "wikitext").strip() != "wikitext":
        return dropped("not wikitext")
    if not wikitext.strip():
        is_elsewhere = (
            text is not None and text.get("deleted") is None and text.get("bytes", "0") != "0"
        )
        return dropped("text is not in this dump (a stub dump)" if is_elsewhere else "empty")
    try:
        body = unicodedata.normalize("NFC", text_of_wikitext(wikitext, site, title))
    except (DamagedWikitext, RecursionError):
        return dropped("damaged wikitext")
    if len(body) < MIN_ARTICLE_CHARACTERS:
        return dropped("too short")
    return f"{unicodedata.normalize('NFC', title)}\n\n{body}"
