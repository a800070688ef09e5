"""`wikillm prepare --wiki DUMP...`: settings that suit a MediaWiki dump, put before the user's own.

Quality rules are on; duplicates are dropped, near ones if rensa is installed; a Chinese dump is
converted to simplified characters if OpenCC is installed. The user's settings win. Every choice is
printed, so that the same words build the same store elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wikillm.core.errors import ConfigError, DataError, Problems

_SETTING = re.compile(r"(--)?[a-z_]+(\.[a-z_]+)+=")


def split_words(wiki: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words after `--wiki`: dumps, and settings (`data.x=y`) that argparse took for dumps."""
    settings = [word for word in wiki if _SETTING.match(word)]
    return [word for word in wiki if word not in settings], settings


def wiki_settings(dumps: Sequence[str], user: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings for these dumps, without those the user set, and notes on what was not possible.

    Raises ConfigError for dumps with the same text, DataError for a file that is not a dump.
    """
    from wikillm.config.flags import parse_arguments
    from wikillm.data.fetch.remote import scheme_of
    from wikillm.data.filters.settings import has_minhash, has_opencc
    from wikillm.data.sources.locate import locate
    from wikillm.data.sources.sniff import sniff

    taken = {setting.key for setting in parse_arguments(user, Problems(ConfigError))}
    if "data.path" in taken:
        what = "--wiki names the sources, and data.path does too."
        raise ConfigError(what, fix="leave one of them out")
    addresses = [dump for dump in dumps if scheme_of(dump)]  # fetched later: only the name is known
    local = [dump for dump in dumps if dump not in addresses]
    paths = [str(path) for path in locate(local)] if local else []
    _refuse_same_dump([*paths, *addresses])
    sources = [sniff(Path(path)) for path in paths]
    for source in sources:
        if source.format != "mediawiki":
            raise DataError(
                "A file of --wiki is not a MediaWiki dump.",
                got=f"{source.path} is {source.format}",
                fix=f"wikillm prepare data.path={source.path} data.quality=basic data.dedup=exact",
            )
    # Everything that a dump needs, reduced to what is installed here.
    wanted = {"data.quality": "basic", "data.dedup": "minhash", "data.convert": "none"}
    notes = {}
    install = "is not installed (pip install 'wikillm[wiki]')"
    if not has_minhash():
        wanted["data.dedup"] = "exact"
        notes["data.dedup"] = f"near duplicates stay: rensa {install}"
    sites = [source.site for source in sources]
    is_chinese = any(site.dbname == "zhwiki" or "://zh." in site.base for site in sites)
    if is_chinese or any("zhwiki" in name for name in addresses):
        wanted["data.convert"] = "t2s" if has_opencc() else "none"
        if not has_opencc():
            notes["data.convert"] = f"traditional characters stay: OpenCC {install}"
    if "data.drop_list" in taken:  # the list records how its duplicates were found
        wanted["data.dedup"] = "none"
        notes.pop("data.dedup", None)
    words = ["data.path=" + ",".join([*paths, *addresses])]
    words += [f"{key}={value}" for key, value in wanted.items() if key not in taken]
    return words, [note for key, note in notes.items() if key not in taken]


def _refuse_same_dump(paths: Sequence[str]) -> None:
    """`pages-articles` and `pages-articles-multistream` of one dump have the same text."""
    seen: dict[str, str] = {}
    for path in paths:
        plain = path.rpartition("/")[2].replace("-multistream", "")
        if plain in seen:
            best = path if "multistream" in path else seen[plain]
            raise ConfigError(
                "Two files of --wiki are the same dump in two forms.",
                got=f"{seen[plain]} and {path}",
                fix=f"--wiki {best} (multistream is read by several cores)",
            )
        seen[plain] = path
