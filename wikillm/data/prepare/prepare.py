"""Plan and build the token store that `data.*` describes, or open it if it exists.

Every rank calls `prepare_store` before a process group exists (for a corpus, through `read.open`).
One process computes the digests of the sources, chooses the tokenizer and builds; the others wait
and open the same store. The digests are kept in a file beside the store. Its name is a hash of the
settings and of the path, size and time of each source, so a later start with the same data neither
reads the sources again nor repeats a download of a tokenizer that failed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from wikillm.config.schema_data import DataSection
from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import read_object, sha256_file, write_json
from wikillm.data.fetch.cache import Cache, Fetched
from wikillm.data.fetch.find import find_sources
from wikillm.data.fetch.remote import scheme_of, without_secrets
from wikillm.data.filters.settings import Filters, plan_filters
from wikillm.data.prepare.build import ensure_store
from wikillm.data.prepare.dedup import Deduplication
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.prepare.validation_split import (
    automatic_fraction,
    refuse_few_held_out,
    refuse_one_text,
)
from wikillm.data.sources.check_source import check_source
from wikillm.data.sources.read import estimated_bytes, shard_range
from wikillm.data.sources.sniff import sniff
from wikillm.data.store.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    SourceInfo,
    fingerprint_of,
    refuse_other_facts,
)
from wikillm.data.store.remote_store import open_remote
from wikillm.data.store.store import Store
from wikillm.data.text.clean import cleaner_version
from wikillm.data.tokenizer.find import TokenizerChoice, choose_tokenizer
from wikillm.data.types import SourceFile
from wikillm.data.workers.exclusive import beside, exclusive
from wikillm.data.workers.progress import Progress, Work

STORES = Path("stores")
_NOT_IN_KEY = {  # settings on which the digests and the choice of the tokenizer do not depend
    "workers",
    "backend",
    "max_bad_fraction",
    "min_val_tokens",
    "preset",
    "shard_bytes",
    "verify",
    "streaming",
    "window_shards",
    "stall_seconds",
    "mixture",
    "packing",
    "cache",
    "cache_bytes",
    "drop_list",
}
_MAX_DOCUMENT_BYTES = 2**32 - 1  # the store counts a document's bytes in 32 bits
_NO_TEXT_KEY = ("mediawiki", "text", "blocks", "lines")


def prepare_store(cfg: DataSection, *, is_main: bool = True, is_part: bool = False) -> Store:
    """Open the single token store of `cfg`; build it first if it is missing. (all ranks)

    With `is_part` the store belongs to a mixture. Its held-out tokens are not checked here: the
    mixture checks the sum over its stores.

    Raises:
        ConfigError: a setting out of range.
        DataError: bad sources, tokenizer or existing store; too few held-out tokens.
        MachineError: a full disk, or a worker process that died.
    """
    check_settings(cfg)
    store = open_prepared(cfg, is_main=is_main)
    if store is None:
        plan = plan_store(cfg, is_main=is_main, is_part=is_part)
        store = ensure_planned(plan, is_main=is_main)
    if not is_part:
        share = store.manifest.facts["data.val_fraction"]
        refuse_few_held_out(store.dir, share, store.train, store.val, cfg)
    return store


def check_settings(cfg: DataSection) -> None:
    """Raise ConfigError for values out of range; reads no source."""
    if cfg.val_fraction != "auto" and not 0 < cfg.val_fraction < 1:
        what = "data.val_fraction must be a share between 0 and 1."
        raise ConfigError(what, got=str(cfg.val_fraction), fix="data.val_fraction=0.1")
    if cfg.max_document_bytes > _MAX_DOCUMENT_BYTES:
        what = "data.max_document_bytes must be below 4 GiB."
        raise ConfigError(what, got=str(cfg.max_document_bytes))


def open_prepared(cfg: DataSection, *, is_main: bool = True) -> Store | None:
    """The store in `data.store`, if no source is named or it is an address. (all ranks)

    None if the store is still to be planned and built.
    """
    if cfg.store and scheme_of(cfg.store):
        if cfg.path:
            build = "to build a store, set data.store to a local folder, then upload that folder"
            raise ConfigError(
                "data.store is an address: a store can be read from there, but not built there.",
                got=f"data.store={without_secrets(cfg.store)} and data.path",
                fix=f"data.path=null reads the store; {build}",
            )
        return open_remote(cfg.store, Cache(cfg.cache, cfg.cache_bytes), is_main=is_main)
    if not cfg.path and cfg.store and (Path(cfg.store) / MANIFEST_NAME).exists():
        return Store.open(Path(cfg.store), sizes=is_main)
    return None


def ensure_planned(plan: BuildPlan, *, is_main: bool = True) -> Store:
    """The finished store of a plan, which is built if it is missing. (all ranks)

    Raises DataError when an existing store was made from other facts.
    """
    ensure_store(plan, is_main=is_main)
    store = Store.open(plan.store, sizes=is_main)
    refuse_other_facts(plan.store, store.manifest.facts, plan.facts)
    return store


def plan_store(cfg: DataSection, *, is_main: bool = True, is_part: bool = False) -> BuildPlan:
    """Find everything that decides the store: sources, digests, tokenizer, duplicates. (all ranks)

    With `is_part` the store belongs to a mixture, and the source may be a single document. With
    `data.dedup` and no `data.drop_list` this reads all sources, which takes about as long as the
    build.
    """
    if cfg.mixture:
        raise ConfigError(
            "This command builds one store, and data.mixture names several.",
            got=", ".join(source.name for source in cfg.mixture),
            fix="build each store on its own with data.path=... data.store=..., "
            "then name the stores in data.mixture",
        )
    # Check the settings of filters and drop-list before any source is read.
    filters = plan_filters(cfg)
    dedup = Deduplication.of(cfg)
    files = find_sources(cfg, is_main=is_main)
    sources = _inspect_all(files, cfg)
    if not is_part:
        refuse_one_text(sources)
    # One process finds digests, tokenizer and duplicates; the others wait for its results.
    folder = Path(cfg.store).absolute().parent if cfg.store else STORES
    base = folder / f".{_settings_key(cfg, sources)}"
    with exclusive(base, "preparing the data", is_main):
        digests, tokenizer = _digests_and_tokenizer(cfg, sources, beside(base, ".found.json"))
        plan = _plan(cfg, sources, digests, tokenizer, folder, filters)
        return plan if dedup is None else dedup.apply(plan, cfg, folder, is_main)


def _inspect_all(files: Sequence[Fetched], cfg: DataSection) -> tuple[SourceFile, ...]:
    """Inspect all files.

    Raises DataError. If only some files lack the text key, the fix is not another data.text_key.
    """
    found: list[SourceFile] = []
    other_key: DataError | None = None
    for file in files:
        try:
            found.append(inspect_source(file, cfg))
        except DataError as error:
            if not (error.fix or "").lstrip("'").startswith("data.text_key="):
                raise
            other_key = other_key or error
    if other_key is None:
        return tuple(found)
    if not found:
        raise other_key
    raise DataError(
        other_key.what,
        got=f"{other_key.got}\nthe text of {found[0].path} is under {cfg.text_key!r}",
        fix="rename the key or column in the files that differ; or make the files of each key "
        "a source of data.mixture, which has its own text_key",
    )


def inspect_source(file: Fetched, cfg: DataSection) -> SourceFile:
    """Detect format and compression of a file. Raises DataError when it cannot be read."""
    try:
        source = _inspected(file, cfg, cfg.format)
    except DataError as error:
        if cfg.format == "auto":
            raise
        # If the file can be read in another format, the error names that format.
        try:
            source = _inspected(file, cfg, "auto")
        except DataError:
            raise error from None
        if source.format == "text":
            raise
        raise DataError(
            f"A file is not what data.format={cfg.format} says: it is {source.format}.",
            got=f"{error.what}\n{error.got}",
            fix="data.format=auto",
        ) from None
    return source


def _inspected(file: Fetched, cfg: DataSection, wanted: str) -> SourceFile:
    source = sniff(file.path, wanted, cfg.text_key)
    check_source(source, cfg.max_document_bytes)
    return replace(source, url=file.url, version=file.version, max_field_lines=cfg.max_field_lines)


def _settings_key(cfg: DataSection, sources: tuple[SourceFile, ...]) -> str:
    """A key of 12 hex digits from the settings and file metadata, without reading the sources."""
    files = [
        (os.path.realpath(s.path), s.size, os.stat(s.path).st_mtime_ns, s.format) for s in sources
    ]
    settings = cfg.model_dump(exclude=_NOT_IN_KEY)
    version = cleaner_version(source.format for source in sources)
    text = json.dumps([FORMAT_VERSION, version, settings, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _digests_and_tokenizer(
    cfg: DataSection, sources: tuple[SourceFile, ...], cache: Path
) -> tuple[list[str], TokenizerChoice]:
    """Digests of the sources, and the tokenizer.

    `cache` is the file that keeps the digests, and whether the download of a tokenizer failed.
    """
    known = read_object(cache)
    digests = known.get("digests")
    if not isinstance(digests, list) or [type(d) for d in digests] != [str] * len(sources):
        known = {}
        digests = _digests(sources)
    # With data.tokenizer=auto, a download that failed is not repeated for the same corpus.
    failed = known.get("hubs_failed", False)
    size = _text_estimate(cfg, sources)
    tokenizer = choose_tokenizer(cfg.tokenizer, size, may_download=not failed)
    failed = failed or (cfg.tokenizer == "auto" and tokenizer.folder is None)
    value = {"digests": digests, "hubs_failed": failed}
    if value != known:
        with suppress(OSError):  # on a read-only disk every start computes the digests again
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, value)
    return digests, tokenizer


def _text_estimate(cfg: DataSection, sources: tuple[SourceFile, ...]) -> int:
    estimate = estimated_bytes(sources)
    return min(estimate, cfg.max_text_bytes or estimate)


def _digests(sources: tuple[SourceFile, ...]) -> list[str]:
    progress = Progress("reading the sources' sha256", sum(source.size for source in sources))

    def on_read(size: int) -> None:
        progress.add(Work(source_bytes=size))

    found = [sha256_file(Path(source.path), on_read) for source in sources]
    progress.finish()
    return found


def _plan(
    cfg: DataSection,
    sources: tuple[SourceFile, ...],
    digests: list[str],
    tokenizer: TokenizerChoice,
    folder: Path,
    filters: Filters,
) -> BuildPlan:
    size = _text_estimate(cfg, sources)
    fraction = automatic_fraction(size) if cfg.val_fraction == "auto" else cfg.val_fraction
    shard_bytes = cfg.shard_bytes or shard_range(size)
    has_keys = any(source.format not in _NO_TEXT_KEY for source in sources)
    # Every byte of the store follows from its facts. A new fact must be left out where it has no
    # effect; otherwise all existing stores would be built again.
    facts = {
        "format_version": FORMAT_VERSION,
        "cleaner": cleaner_version(source.format for source in sources),
        "data.path": [
            {"sha256": digest, "size": s.size, "format": s.format}
            for s, digest in zip(sources, digests, strict=True)
        ],
        "data.tokenizer": tokenizer.facts(),
        "data.text_key": cfg.text_key if has_keys else None,
        "data.val_fraction": fraction,
        "data.max_text_bytes": cfg.max_text_bytes,
        "data.max_document_bytes": cfg.max_document_bytes,
        "eos": "after each document",
        "shard_bytes": shard_bytes,
    }
    if any(source.format == "csv" for source in sources):
        facts["data.max_field_lines"] = cfg.max_field_lines
    facts |= filters.facts()
    return BuildPlan(
        store=Path(cfg.store) if cfg.store else folder / fingerprint_of(facts)[:12],
        facts=facts,
        sources=sources,
        source_infos=tuple(
            SourceInfo(s.path, s.size, digest, s.format, s.compression, s.url, s.version)
            for s, digest in zip(sources, digests, strict=True)
        ),
        tokenizer=tokenizer,
        text_key=cfg.text_key,
        shard_bytes=shard_bytes,
        val_fraction=fraction,
        max_text_bytes=cfg.max_text_bytes,
        max_document_bytes=cfg.max_document_bytes,
        max_bad_fraction=cfg.max_bad_fraction,
        workers=cfg.workers or len(os.sched_getaffinity(0)),
        backend=cfg.backend,
        filters=filters,
    )
