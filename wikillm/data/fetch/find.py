"""What `data.path` names, as files on this machine: local ones as they are, remote ones downloaded.

A local entry is what `locate` makes of it. Of an address the file is fetched into the cache (`cache.py`); `s3://` and
`oss://` may have a `*`, or end with `/` for all below it that is named like a corpus. `hf://` and
`modelscope://` are data sets at a pinned revision (`hub.py`). The order is that of the entries.
"""

from __future__ import annotations

from pathlib import Path

from wikillm.config.schema import DataSection
from wikillm.core.errors import DataError
from wikillm.data.fetch import datasets as hub
from wikillm.data.fetch import remote
from wikillm.data.fetch.cache import Cache, Fetched
from wikillm.data.sources.locate import is_named_like_a_corpus, locate


def find_sources(cfg: DataSection, *, is_main: bool = True) -> list[Fetched]:
    """The files of `data.path`, each once, with where each came from. (all ranks)

    Raises ConfigError, DataError and MachineError as `locate`, `cache` and `hub` do.
    """
    if not any(remote.scheme_of(entry) for entry in cfg.path):
        return [Fetched(path, "", "") for path in locate(cfg.path)]
    cache = Cache(cfg.cache, cfg.cache_bytes)
    found: list[Fetched] = []
    for entry in cfg.path:
        if not remote.scheme_of(entry):
            found += [Fetched(path, "", "") for path in locate([entry])]
        elif remote.scheme_of(entry) in hub.SCHEMES:
            found += hub.fetch(entry, cache, is_main=is_main)
        else:
            found += _fetch(entry, cache, {file.path for file in found}, is_main)
    unique: dict[Path, Fetched] = {}
    for file in found:
        unique.setdefault(file.path.resolve(), file)
    return list(unique.values())


def _fetch(entry: str, cache: Cache, keep: set[Path], is_main: bool) -> list[Fetched]:
    remote.check_address(entry)
    found: list[Fetched] = []
    with cache.exclusive(is_main, entry) as asked:
        for url in _files_of(entry, cache):
            found.append(cache.fetch(url, {*keep, *(file.path for file in found)}, asked))
    return found


def _files_of(entry: str, cache: Cache) -> list[str]:
    listed = cache.files_of(entry)
    if entry.endswith("/"):
        listed = [url for url in listed if is_named_like_a_corpus(url)]
    if not listed:
        fix = f"look at the address\n{remote.HOW_WITHOUT}"
        raise DataError(
            "No file matches an address in data.path.", got=remote.shown(entry), fix=fix
        )
    return listed
