"""`wikillm prepare --wiki DUMP...`: the settings that a MediaWiki dump wants, as words put before the user's own.

Quality rules on; duplicates dropped, near ones where rensa is installed; a Chinese dump to simplified characters where OpenCC
is. What the user sets is left alone. Every choice is said, so that the same words give the same store elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wikillm.core.errors import ConfigError, DataError

_SETTING = re.compile(r"(--)?[a-z_]+(\.[a-z_]+)+=")


def split_words(wiki: Sequence[str]) -> tuple[list[str], list[str]]:
    """What follows `--wiki`: dumps, and settings (`data.x=y`) that argparse took for dumps."""
    settings = [word for word in wiki if _SETTING.match(word)]
    return [word for word in wiki if word not in settings], settings


def wiki_settings(dumps: Sequence[str], user: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings for these dumps, without those the user set, and lines that say what was not possible.

    Raises ConfigError for dumps that hold the same text twice, DataError for what is no dump.
    """
    from wikillm.config.flags import parse_arguments
    from wikillm.core.errors import Problems
    from wikillm.data.fetch.remote import scheme_of
    from wikillm.data.filters.settings import has_minhash, has_opencc
    from wikillm.data.sources.locate import locate
    from wikillm.data.sources.sniff import sniff

    taken = {setting.key for setting in parse_arguments(user, Problems(ConfigError))}
    if "data.path" in taken:
        raise ConfigError(
            "--wiki names the sources, and data.path does too.", fix="leave one of them out"
        )
    addresses = [dump for dump in dumps if scheme_of(dump)]  # fetched later: the name has to tell
    local = [dump for dump in dumps if dump not in addresses]
    paths = [str(path) for path in locate(local)] if local else []
    _refuse_twins([*paths, *addresses])
    sources = [sniff(Path(path)) for path in paths]
    for source in sources:
        if source.format != "mediawiki":
            raise DataError(
                "A file of --wiki is no MediaWiki dump.",
                got=f"{source.path} is {source.format}",
                fix=f"wikillm prepare data.path={source.path} data.quality=basic data.dedup=exact",
            )
    wanted, notes = {"data.quality": "basic", "data.dedup": "minhash", "data.convert": "none"}, []
    if not has_minhash():
        wanted["data.dedup"] = "exact"
        notes.append("near duplicates stay: rensa is not installed (pip install 'wikillm[wiki]')")
    sites = [source.site for source in sources]
    is_chinese = any(site.dbname == "zhwiki" or "://zh." in site.base for site in sites)
    if is_chinese or any("zhwiki" in name for name in addresses):
        wanted["data.convert"] = "t2s" if has_opencc() else "none"
        if not has_opencc():
            notes.append(
                "traditional characters stay: OpenCC is not installed (pip install 'wikillm[wiki]')"
            )
    if "data.drop_list" in taken:  # it says itself how its duplicates were found
        wanted["data.dedup"] = "none"
        notes = [note for note in notes if not note.startswith("near")]
    words = ["data.path=" + ",".join([*paths, *addresses])]
    words += [f"{key}={value}" for key, value in wanted.items() if key not in taken]
    return words, [note for note in notes if _concerns(note, taken)]


def _concerns(note: str, taken: set[str]) -> bool:
    return ("data.dedup" if note.startswith("near") else "data.convert") not in taken


def _refuse_twins(paths: Sequence[str]) -> None:
    """`pages-articles` and `pages-articles-multistream` of one dump are one text."""
    seen: dict[str, str] = {}
    for path in paths:
        plain = path.rpartition("/")[2].replace("-multistream", "")
        if plain in seen:
            raise ConfigError(
                "Two files of --wiki are the same dump in two forms.",
                got=f"{seen[plain]} and {path}",
                fix=f"--wiki {path if 'multistream' in path else seen[plain]} (multistream is read by several cores)",
            )
        seen[plain] = path
