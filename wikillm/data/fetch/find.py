"""Find the files that `data.path` names, and download remote files.

`locate` expands local entries. An address is fetched into the cache; an `s3://` or `oss://` address
may contain a `*`, or end with `/` for every file below it that is named like a corpus. `hf://` and
`modelscope://` name data sets at a pinned revision. Files keep the order of the entries.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from wikillm.config.schema_data import DataSection
from wikillm.core.errors import DataError
from wikillm.data.fetch import datasets, remote
from wikillm.data.fetch.cache import Cache, Fetched
from wikillm.data.sources.locate import is_named_like_a_corpus, locate


def find_sources(cfg: DataSection, *, is_main: bool = True) -> list[Fetched]:
    """The files of `data.path`, each once, with the address and version of each. (all ranks)

    Raises ConfigError, DataError and MachineError as `locate`, `cache` and `datasets` do.
    """
    if not any(map(remote.scheme_of, cfg.path)):
        return [Fetched(path) for path in locate(cfg.path)]
    cache = Cache(cfg.cache, cfg.cache_bytes)
    unique: dict[Path, Fetched] = {}
    for entry in cfg.path:
        scheme = remote.scheme_of(entry)
        if not scheme:
            found = [Fetched(path) for path in locate([entry])]
        elif scheme in datasets.SCHEMES:
            found = datasets.fetch(entry, cache, is_main=is_main)
        else:
            keep = [file.path for file in unique.values()]
            found = _fetch(entry, cache, keep, is_main)
        for file in found:
            unique.setdefault(file.path.resolve(), file)
    return list(unique.values())


def _fetch(entry: str, cache: Cache, keep: Collection[Path], is_main: bool) -> list[Fetched]:
    """The files of one address; the cache must not remove the files in `keep` for them."""
    remote.check_address(entry)
    found: list[Fetched] = []
    with cache.exclusive(is_main, entry) as asked:
        urls = cache.files_of(entry)
        if entry.endswith("/"):
            urls = [url for url in urls if is_named_like_a_corpus(url)]
        if not urls:
            raise DataError(
                "No file matches an address in data.path.",
                got=remote.without_secrets(entry),
                fix=f"check the address\n{remote.HOW_WITHOUT}",
            )
        for url in urls:
            found.append(cache.fetch(url, {*keep, *(file.path for file in found)}, asked))
    return found
