"""The meaning of the prefix of a title or a link (the part before a colon) on a wiki.

Namespace names come from the dump's `<siteinfo>`, from the English names that every MediaWiki
knows, and from the aliases in `wikitext_names`, which no dump lists. Prefixes of other wikis are a
fixed list. Any other colon is part of the title, as in `CSI:Miami`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from wikillm.data.text import wikitext_names
from wikillm.data.types import WikiSite

_ARTICLES = 0
_HIDDEN_NAMESPACES = frozenset({6, 14})  # File, Category: links show a picture or nothing
_EVERYWHERE = (
    *("media", "special", "user", "project", "file", "image"),
    *("mediawiki", "template", "help", "category"),
)
_WITHOUT_TALK = frozenset({"media", "special"})


class SiteNames(NamedTuple):
    """Prefixes with a meaning, in the form that `prefix_of` returns."""

    hidden: frozenset[str]  # of links that show a picture or set a category
    others: frozenset[str]  # of titles that are not articles
    converts: bool  # whether `-{...}-` is markup
    is_french: bool  # French typography puts a space before `:;!?`


def prefix_of(title: str) -> str:
    """The part before the first colon, in lower case, `_` as space; empty without a colon."""
    prefix, colon, _ = title.partition(":")
    return " ".join(prefix.replace("_", " ").split()).casefold() if colon else ""


@lru_cache(maxsize=64)
def site_names(site: WikiSite) -> SiteNames:
    """The prefixes of a wiki; without siteinfo, only those that every wiki has."""
    local = [(key, prefix_of(f"{name}:")) for key, name in site.namespaces]
    others = {name for key, name in local if key != _ARTICLES}
    for name in (*_EVERYWHERE, prefix_of(f"{site.name}:"), "wikipedia"):
        if name:
            others |= {name} if name in _WITHOUT_TALK else {name, f"{name} talk"}
    language = site.language.partition("-")[0].casefold()
    is_unknown = not local and not language
    dropped = wikitext_names.DROPPED_PREFIXES
    if is_unknown:
        dropped |= wikitext_names.MORE_DROPPED_PREFIXES
    return SiteNames(
        hidden=dropped | {name for key, name in local if key in _HIDDEN_NAMESPACES},
        others=frozenset({*others, "talk", *dropped, *wikitext_names.OTHER_PREFIXES}),
        converts=not language or language in wikitext_names.CONVERTED_LANGUAGES,
        is_french=language == "fr",
    )
