"""Several token stores read as one, by weight: sample n of the mixture is sample m of source s, a pure function of n.

A table of 4096 places says which source gives which sample; it repeats for ever, and source k has exactly
`counts[k]` places in it, spread evenly. Counts up to each place make the way from n to (s, m) one division and two
lookups, so a share never drifts and any sample is found at once. Each source keeps an order and epochs of its own
(`order.py`), so a small source with a large weight is simply read more often; how often is told. The state of a
run is still one integer. What is read does not depend on ranks or workers.

`MixedOrder` and `JoinedStream` have the faces of `SampleOrder` and `TokenStream`: the streams of the sources lie
one after the other, and the order speaks of positions in that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.config.mixture import PERIOD, counts_of
from wikillm.config.schema import DataSection, MixtureSource, Packing
from wikillm.core.errors import DataError
from wikillm.core.log import say
from wikillm.data.fetch.remote import scheme_of
from wikillm.data.funnel import merged
from wikillm.data.order.best_fit import PackedOrder, finished_order
from wikillm.data.order.blocks import SampleOrder, keyed_hash
from wikillm.data.store.manifest import MANIFEST_NAME, Manifest, SplitInfo, fingerprint_of
from wikillm.data.store.store import SPLITS, Store, TokenStream

MIXTURE_VERSION = 1


class Table:
    """Which source gives sample n, and its how-manieth it is: `counts[k]` of every `sum(counts)` samples are k's."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.period = int(self.counts.sum())
        sources = np.repeat(np.arange(len(counts)), self.counts)
        # The i-th of c samples belongs at (2i + 1) / 2c of the period; equal places go by source. Quotients of whole
        # numbers below 2^13 are equal as floats exactly when they are equal.
        places = np.concatenate([(2 * np.arange(c) + 1) / c for c in self.counts.tolist()])
        self.sources = sources[np.lexsort((sources, places))]
        chosen = self.sources[:, None] == np.arange(len(counts))
        self.before = np.zeros(
            (self.period + 1, len(counts)), dtype=np.int64
        )  # samples of each source before a place
        np.cumsum(chosen, axis=0, out=self.before[1:])

    def locate(self, samples: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(source, sample within it) for each of `samples`, an array of one dimension."""
        rounds, places = np.divmod(np.asarray(samples, dtype=np.int64), self.period)
        sources = self.sources[places]
        return sources, rounds * self.counts[sources] + self.before[places, sources]

    def samples_before(self, sample: int) -> npt.NDArray[np.int64]:
        """How many of the samples [0, sample) each source gives."""
        rounds, place = divmod(sample, self.period)
        return rounds * self.counts + self.before[place]


class JoinedStream(TokenStream):
    """Streams one after the other, as one; of each the first `limits` tokens."""

    def __init__(
        self, folder: Path, streams: Sequence[TokenStream], limits: Sequence[int] | None = None
    ) -> None:
        super().__init__(folder, "", ())
        self.streams = tuple(streams)
        sizes = [stream.n_tokens for stream in streams] if limits is None else list(limits)
        self.starts = [0, *(int(end) for end in np.cumsum(sizes))]
        self.n_tokens = self.starts[-1]
        self.n_documents = sum(stream.n_documents for stream in streams)
        self.text_bytes = sum(stream.text_bytes for stream in streams)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint32]:
        self._check(start, stop)
        parts = [self.streams[k].read(first, last) for k, first, last in self._within(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty(0, dtype=np.uint32), *parts])

    def document_ends(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        stop = self.n_tokens if stop is None else stop
        self._check(start, stop)
        found = [
            self.streams[k].document_ends(a, b) + self.starts[k]
            for k, a, b in self._within(start, stop)
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def indexes(self) -> Iterator[npt.NDArray[Any]]:
        for stream in self.streams:
            yield from stream.indexes()

    def _within(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(stream, first, last) of the parts that make up [start, stop)."""
        at = start
        while at < stop:
            k = bisect_right(self.starts, at) - 1
            end = min(stop, self.starts[k + 1])
            yield k, at - self.starts[k], end - self.starts[k]
            at = end


@dataclass(frozen=True, slots=True)
class MixedOrder:
    """The order of a mixture's samples, with the face of `SampleOrder`. `starts`: where each stream begins."""

    table: Table
    orders: tuple[SampleOrder | PackedOrder, ...]
    starts: tuple[int, ...]

    @property
    def sequence_length(self) -> int:
        return self.orders[0].sequence_length

    def pieces(self, samples: npt.ArrayLike) -> list[list[tuple[int, int]]]:
        """For each sample the stretches of targets it is made of, as positions in the joined stream."""
        sources, within = self.table.locate(np.atleast_1d(np.asarray(samples, dtype=np.int64)))
        found: list[list[tuple[int, int]]] = [[] for _ in sources]
        for k in np.unique(sources).tolist():
            rows, base = np.flatnonzero(sources == k), self.starts[k]
            for row, stretches in zip(
                rows.tolist(), self.orders[k].pieces(within[rows]), strict=True
            ):
                found[row] = [(base + start, base + stop) for start, stop in stretches]
        return found

    def targets_between(self, first: int, stop: int) -> int:
        """Number of targets in the samples [first, stop), over all sources."""
        ranges = zip(
            self.table.samples_before(first).tolist(),
            self.table.samples_before(stop).tolist(),
            strict=True,
        )
        return sum(
            order.targets_between(a, b) for order, (a, b) in zip(self.orders, ranges, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a mixture. `count`: its samples among every 4096."""

    name: str
    count: int
    store: Store

    @property
    def share(self) -> float:
        return self.count / PERIOD


@dataclass(frozen=True, slots=True)
class SourceUse:
    """What a run takes of one source. `epochs`: passes over its training tokens."""

    name: str
    share: float
    samples: int
    tokens: int
    epochs: float


@dataclass(frozen=True)
class Mixture:
    """The sources of a mixed store, and how they are mixed."""

    parts: tuple[Part, ...]

    @cached_property
    def table(self) -> Table:
        return Table([part.count for part in self.parts])

    def describe(self) -> str:
        """The mixture in one line; two runs with the same line and the same stores read the same."""
        return ", ".join(f"{part.name} {part.count}/{PERIOD}" for part in self.parts)

    def order(
        self, sequence_length: int, seed: int, window_shards: int, packing: Packing = "concat"
    ) -> MixedOrder:
        orders, starts, start = [], [], 0
        for part in self.parts:
            own = keyed_hash(seed, "mixture", part.name)
            orders.append(finished_order(part.store, sequence_length, own, window_shards, packing))
            starts.append(start)
            start += part.store.train.n_tokens
        return MixedOrder(self.table, tuple(orders), tuple(starts))

    def used(self, samples: int, order: MixedOrder) -> tuple[SourceUse, ...]:
        """What the first `samples` samples of `order` take of each source; tokens are targets, padding is none.

        Of packed sequences by their average filling, which is exact at the end of an epoch: to look at each of them again
        would take longer with every log line.
        """
        counts, found = self.table.samples_before(samples).tolist(), []
        for part, own, count in zip(self.parts, order.orders, counts, strict=True):
            targets = max(1, part.store.train.n_tokens - 1)  # of an epoch
            packed = isinstance(own, PackedOrder)
            tokens = (
                round(count * targets / own.blocks_per_epoch)
                if packed
                else own.targets_between(0, count)
            )
            found.append(SourceUse(part.name, part.share, count, tokens, tokens / targets))
        return tuple(found)

    def held_out(self, max_tokens: int | None) -> tuple[tuple[str, TokenStream], ...]:
        """The held-out stream of each source that has one, cut to its part of the first `max_tokens` targets."""
        streams = [
            (part.name, part.store.val) for part in self.parts if part.store.val.n_tokens >= 2
        ]
        total = sum(stream.n_tokens for _, stream in streams)
        if max_tokens is None or max_tokens >= total:
            return tuple(streams)
        wanted = [max(2, -(-stream.n_tokens * max_tokens // total)) for _, stream in streams]
        return tuple(
            (name, JoinedStream(self.parts[0].store.dir, (stream,), (limit,)))
            for (name, stream), limit in zip(streams, wanted, strict=True)
        )


def open_mixture(
    cfg: DataSection,
    prepare: Callable[[DataSection], Store],
    tokenizer_of: Callable[[list[tuple[str, int, DataSection]]], str],
) -> Store:
    """The stores of all sources, as one. `prepare` opens the store of one source, building it where it is missing.

    Where `data.tokenizer` is auto or train:N, the first store that is there already decides the tokenizer; without one
    `tokenizer_of` does, from name, count and settings of all sources. Raises DataError when another store that was
    prepared elsewhere has another one, or when a source has nothing to train on.
    """
    counts = counts_of(cfg.mixture)
    sections = [_section_of(cfg, source, cfg.tokenizer) for source in cfg.mixture]
    tokenizer = cfg.tokenizer
    if tokenizer == "auto" or tokenizer.startswith("train:"):
        ready = next(
            (store for section in sections if (store := _ready(section, prepare)) is not None), None
        )
        if ready is not None:
            tokenizer = str(ready.tokenizer_dir)
        else:
            names = [source.name for source in cfg.mixture]
            tokenizer = tokenizer_of(list(zip(names, counts, sections, strict=True)))
    parts: list[Part] = []
    for source, count in zip(cfg.mixture, counts, strict=True):
        say(f"mixture: {source.name}, {count / PERIOD:.2%} of the samples")
        store = _open(_section_of(cfg, source, tokenizer), prepare)
        if parts and store.manifest.tokenizer.sha256 != parts[0].store.manifest.tokenizer.sha256:
            raise _other_tokenizer(parts[0], source, store)
        if store.train.n_tokens < 2:
            raise DataError(
                f"The source {source.name} of data.mixture has nothing to train on.",
                got=str(store.dir),
            )
        parts.append(Part(source.name, count, store))
    return join(tuple(parts))


def _open(section: DataSection, prepare: Callable[[DataSection], Store]) -> Store:
    """The store of one source; one without a path was prepared elsewhere, and is a folder here or an address."""
    if section.path or scheme_of(section.store or ""):
        return prepare(section)
    return Store.open(Path(section.store or ""))


def _ready(section: DataSection, prepare: Callable[[DataSection], Store]) -> Store | None:
    """The store of one source if it need not be built, and has a tokenizer of the size that is wanted."""
    folder = Path(section.store or "")
    if not section.path:
        return _open(section, prepare)
    if not section.store or scheme_of(section.store) or not (folder / MANIFEST_NAME).exists():
        return None
    store = Store.open(folder)
    wanted = section.tokenizer.removeprefix("train:")
    return store if wanted in ("auto", str(store.manifest.tokenizer.length)) else None


def join(parts: tuple[Part, ...]) -> Store:
    """The mixed store: joined streams, and a manifest that tells of all sources."""
    stores = [part.store for part in parts]
    manifests = [store.manifest for store in stores]
    facts: dict[str, Any] = {
        "mixture_version": MIXTURE_VERSION,
        "data.mixture": [
            {"name": p.name, "count": p.count, "store": p.store.manifest.fingerprint} for p in parts
        ],
    }
    fingerprint = fingerprint_of(facts)
    manifest = Manifest(
        fingerprint=fingerprint,
        facts={**facts, "data.val_fraction": max(m.facts["data.val_fraction"] for m in manifests)},
        tokenizer=manifests[0].tokenizer,
        backend=manifests[0].backend,
        sources=tuple(source for m in manifests for source in m.sources),
        shard_bytes=max(m.shard_bytes for m in manifests),
        stopped_at_text_limit=any(m.stopped_at_text_limit for m in manifests),
        duplicates=None,
        funnel=merged(m.funnel for m in manifests),
        splits={split: _sum([m.splits[split] for m in manifests]) for split in SPLITS},
        shards=(),
    )
    folder = stores[0].dir
    train, val = (
        JoinedStream(folder, [getattr(store, split) for store in stores]) for split in SPLITS
    )
    return Store(folder, manifest, train, val, mixture=Mixture(parts))


def _sum(parts: Sequence[SplitInfo]) -> SplitInfo:
    return SplitInfo(
        tokens=sum(part.tokens for part in parts),
        documents=sum(part.documents for part in parts),
        text_bytes=sum(part.text_bytes for part in parts),
    )


def _section_of(cfg: DataSection, source: MixtureSource, tokenizer: str) -> DataSection:
    """The data section of one source alone. Its held-out tokens are counted with the others', not by themselves."""
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


def _other_tokenizer(first: Part, source: MixtureSource, store: Store) -> DataError:
    return DataError(
        "The stores of a mixture were made by different tokenizers.",
        got=f"{first.name}: {first.store.manifest.tokenizer.name} in {first.store.tokenizer_dir}\n"
        f"{source.name}: {store.manifest.tokenizer.name} in {store.tokenizer_dir}",
        fix=f"prepare {source.name} again with data.tokenizer={first.store.tokenizer_dir}",
    )
