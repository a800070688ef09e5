"""Open the corpus that `data.*` describes, for training, evaluation and the command line.

Every rank calls these functions before any process group exists. `open_corpus` builds missing
stores first. `stream_corpus` returns as soon as training can begin: the first rank of each node
starts a builder process, then every rank waits for the first window. Only one builder at a time
works in a folder. Nodes that share a folder have one active builder; nodes with separate folders
build the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from wikillm.config.mixture import PERIOD, counts_of
from wikillm.config.schema_data import DataSection, MixtureSource
from wikillm.core.errors import ConfigError, DataError
from wikillm.core.log import logger, say
from wikillm.core.units import format_count, format_seconds
from wikillm.data.fetch.remote import scheme_of
from wikillm.data.prepare.background import Builder
from wikillm.data.prepare.prepare import (
    STORES,
    check_settings,
    ensure_planned,
    open_prepared,
    plan_store,
    prepare_store,
)
from wikillm.data.prepare.tokenizer import mixture_tokenizer
from wikillm.data.prepare.validation_split import refuse_few_held_out
from wikillm.data.read.corpus import Corpus, StoredCorpus, WeightedStore
from wikillm.data.read.growing import POLL_SECONDS, GrowingCorpus
from wikillm.data.read.mixed import MixedCorpus
from wikillm.data.sources.read import estimated_bytes
from wikillm.data.store.manifest import MANIFEST_NAME
from wikillm.data.store.store import Store

_LOG_EVERY_SECONDS = 10.0


def open_corpus(cfg: DataSection, *, is_main: bool = True) -> Corpus:
    """The corpus of `cfg`, whose missing stores are built first. (all ranks)

    Raises:
        ConfigError: a setting out of range.
        DataError: bad sources, tokenizer or store; too few held-out tokens.
        MachineError: a full disk, or a worker process that died.
    """
    if not cfg.mixture:
        store = prepare_store(cfg, is_main=is_main)
        return StoredCorpus(store, cfg.window_shards, cfg.packing)
    check_settings(cfg)
    corpus = MixedCorpus(_mixture(cfg, is_main), cfg.window_shards, cfg.packing)
    share = corpus.manifest.facts["data.val_fraction"]
    refuse_few_held_out(corpus.dir, share, corpus.train, corpus.val, cfg)
    return corpus


def stream_corpus(cfg: DataSection, *, is_main: bool, is_local_main: bool) -> Corpus:
    """The corpus of `cfg` as soon as its first window exists, if data.streaming allows. (all ranks)

    Sources that fill at most one window are prepared completely first, as streaming would gain
    nothing. The held-out stream is always that of the first window, even in a finished store.

    Args:
        is_main: whether this process reports the builder's progress to the user.
        is_local_main: whether this is the first rank of its node, which starts the builder.

    Raises the errors of `open_corpus`, DataError when the builder dies or stalls, and ConfigError
    for data.streaming=on when duplicates still have to be found.
    """
    since = time.time()
    if cfg.mixture or cfg.streaming == "off":
        return open_corpus(cfg, is_main=is_main)
    # A store without sources must be finished, and needs no builder.
    check_settings(cfg)
    ready = open_prepared(cfg, is_main=is_main)
    if ready is not None:
        return _with_first_window(ready, cfg)
    # `is_read`: training reads committed shards while later shards are built, so they must not
    # change.
    _check_duplicates_come_first(cfg, is_main)
    plan = replace(plan_store(cfg, is_main=is_main), is_read=True)
    size = estimated_bytes(plan.sources)
    size = min(size, plan.max_text_bytes or size)
    if cfg.streaming == "auto" and size <= cfg.window_shards * plan.shard_bytes:
        store = ensure_planned(replace(plan, is_read=False), is_main=is_main)
        return _with_first_window(store, cfg)
    # Read the folder first: an earlier run may have begun or finished the store.
    corpus = GrowingCorpus(plan, cfg, since)
    corpus.refresh()
    if is_local_main and not corpus.is_complete:
        corpus.builder = Builder(plan)
    # Any failure from here on must also stop the builder.
    try:
        _wait_for_first_window(corpus, is_main)
        corpus.open()
        train = corpus.first_window("train")
        refuse_few_held_out(corpus.dir, plan.val_fraction, train, corpus.val, cfg)
    except BaseException:
        corpus.close()
        raise
    if is_main and not corpus.is_complete:
        say(
            f"data: training starts on the first {corpus.shards_in_windows} shards "
            f"({format_count(corpus.train.n_tokens)} tokens) while the rest is built"
        )
    return corpus


def _check_duplicates_come_first(cfg: DataSection, is_main: bool) -> None:
    """Refuse data.streaming=on if finding duplicates has to read all sources first."""
    if cfg.dedup == "none" or cfg.drop_list is not None:
        return
    commands = "wikillm prepare ... --drop-list-only FILE, then data.drop_list=FILE"
    if cfg.streaming == "on":
        raise ConfigError(
            "data.streaming=on with data.dedup needs a drop-list, "
            "because finding duplicates reads all sources first.",
            got=f"data.streaming=on, data.dedup={cfg.dedup}",
            fix=f"{commands}; or data.streaming=auto, which finds duplicates and then streams",
        )
    if is_main:
        say(
            f"data: data.dedup={cfg.dedup} reads all sources before training starts; "
            f"to do that beforehand: {commands}"
        )


def _with_first_window(store: Store, cfg: DataSection) -> StoredCorpus:
    """The corpus of a finished store, evaluated on the held-out tokens of its first window."""
    train = store.train.first_shards(cfg.window_shards)
    val = store.val.first_shards(cfg.window_shards)
    share = store.manifest.facts["data.val_fraction"]
    refuse_few_held_out(store.dir, share, train, val, cfg)
    return StoredCorpus(store, cfg.window_shards, cfg.packing, val)


def _wait_for_first_window(corpus: GrowingCorpus, is_main: bool) -> None:
    start = time.monotonic()
    logged = -_LOG_EVERY_SECONDS
    while not corpus.has_window:
        waited = time.monotonic() - start
        if waited - logged >= _LOG_EVERY_SECONDS:
            logged = waited
            line = f"waiting for the first {corpus.window_shards} shards, "
            line += f"{format_seconds(waited)} so far: {corpus.progress()}"
            say(line) if is_main else logger.info(line)
        # Look for a failure before the files, which no longer change after a failure.
        failure = corpus.failure(start)
        corpus.refresh()
        if failure is not None and not corpus.has_window:
            raise failure
        time.sleep(POLL_SECONDS)


def _mixture(cfg: DataSection, is_main: bool) -> list[WeightedStore]:
    """The stores of all sources of data.mixture; missing stores are built.

    Raises DataError when a store that was prepared before has another tokenizer, or when a source
    has nothing to train on.
    """
    tokenizer = _tokenizer_of_mixture(cfg, is_main)
    found: list[WeightedStore] = []
    for source, count in zip(cfg.mixture, counts_of(cfg.mixture), strict=True):
        say(f"mixture: {source.name}, {count / PERIOD:.2%} of the samples")
        with _named(source.name):
            store = _open_source(_section_of(cfg, source, tokenizer), is_main)
        weighted = WeightedStore(source.name, count, store)
        if found and store.manifest.tokenizer.sha256 != found[0].store.manifest.tokenizer.sha256:
            raise _other_tokenizer(found[0], weighted)
        if store.train.n_tokens < 2:
            raise DataError(
                f"The source {source.name} of data.mixture has nothing to train on.",
                got=str(store.dir),
            )
        found.append(weighted)
    return found


def _tokenizer_of_mixture(cfg: DataSection, is_main: bool) -> str:
    """The value of data.tokenizer for every source.

    For auto and train:N this is the tokenizer of the first existing store. If no store exists, the
    tokenizer is chosen, or trained on the text of all sources.
    """
    if cfg.tokenizer != "auto" and not cfg.tokenizer.startswith("train:"):
        return cfg.tokenizer
    sections = [_section_of(cfg, source, cfg.tokenizer) for source in cfg.mixture]
    for section in sections:
        ready = _ready_source(section, is_main)
        if ready is not None:
            return str(ready.tokenizer_dir)
    plans = []
    for source, count, section in zip(cfg.mixture, counts_of(cfg.mixture), sections, strict=True):
        with _named(source.name):
            plan = plan_store(section, is_main=is_main, is_part=True)
        plans.append((source.name, count, plan))
    return mixture_tokenizer(cfg.tokenizer, plans, STORES, is_main=is_main)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Add the name of a source of data.mixture to the errors of its preparation."""
    try:
        yield
    except DataError as error:
        got = f"{error.got}\nin the source {name} of data.mixture"
        fix = (error.fix or "").replace("data.text_key=", "in that source, text_key: ")
        raise DataError(error.what, got=got, fix=fix) from None


def _open_source(section: DataSection, is_main: bool) -> Store:
    """Open the store of a source. A source without a path has a folder or address of a store."""
    if section.path or scheme_of(section.store or ""):
        return prepare_store(section, is_main=is_main, is_part=True)
    return Store.open(Path(section.store or ""))


def _ready_source(section: DataSection, is_main: bool) -> Store | None:
    """The store of a source. None if it does not exist, or its tokenizer has another size."""
    if not section.path:
        return _open_source(section, is_main)
    folder = Path(section.store or "")
    if not section.store or scheme_of(section.store) or not (folder / MANIFEST_NAME).exists():
        return None
    store = Store.open(folder)
    wanted = section.tokenizer.removeprefix("train:")
    return store if wanted in ("auto", str(store.manifest.tokenizer.length)) else None


def _section_of(cfg: DataSection, source: MixtureSource, tokenizer: str) -> DataSection:
    """The data section for a single source of the mixture."""
    changes = {
        "mixture": (),
        "path": source.path,
        "store": source.store,
        "tokenizer": tokenizer,
        "format": source.format or cfg.format,
        "text_key": source.text_key or cfg.text_key,
        "streaming": "off",
    }
    return cfg.model_copy(update=changes)


def _other_tokenizer(first: WeightedStore, other: WeightedStore) -> DataError:
    names = [
        f"{source.name}: {source.store.manifest.tokenizer.name} in {source.store.tokenizer_dir}"
        for source in (first, other)
    ]
    return DataError(
        "The stores of a mixture were made with different tokenizers.",
        got="\n".join(names),
        fix=f"prepare {other.name} again with data.tokenizer={first.store.tokenizer_dir}",
    )
