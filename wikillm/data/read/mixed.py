"""Read several token stores as one corpus, in which each store has a weight.

The streams of the stores are joined, and `order.mixed` returns positions in the joined stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wikillm.data.funnel import merged
from wikillm.data.order.mixed import MixedOrder, SourceOrder
from wikillm.data.order.permutation import keyed_hash
from wikillm.data.read.corpus import Corpus, NamedStream, Order, StoredCorpus, WeightedStore
from wikillm.data.store.joined import JoinedStream
from wikillm.data.store.manifest import Manifest, SplitInfo, fingerprint_of
from wikillm.data.store.store import SPLITS

if TYPE_CHECKING:
    from wikillm.config.schema_types import Packing

MIXTURE_VERSION = 1


class MixedCorpus(Corpus):
    """Finished stores with the same tokenizer, mixed by weight. `manifest` describes all stores."""

    def __init__(
        self, mixture: Sequence[WeightedStore], window_shards: int, packing: Packing = "concat"
    ) -> None:
        self.mixture = tuple(mixture)
        self.shards = ()
        self.window_shards = window_shards
        self.packing = packing
        stores = [source.store for source in mixture]
        self._corpora = [StoredCorpus(store, window_shards, packing) for store in stores]
        self.dir = stores[0].dir
        self.manifest = _joined_manifest(mixture)
        self.train = JoinedStream(self.dir, [store.train for store in stores])
        self.val = JoinedStream(self.dir, [store.val for store in stores])

    def order(self, sequence_length: int, seed: int) -> MixedOrder:
        orders = []
        start = 0
        for source, corpus in zip(self.mixture, self._corpora, strict=True):
            order = corpus.order(sequence_length, keyed_hash(seed, "mixture", source.name))
            size = corpus.train.n_tokens
            orders.append(SourceOrder(source.name, source.count, order, start, max(1, size - 1)))
            start += size
        return MixedOrder(orders)

    def epoch_sizes(self, sequence_length: int) -> tuple[int, int] | None:
        if self.packing == "concat":
            return None
        orders = [corpus.order(sequence_length, 0) for corpus in self._corpora]
        return (
            sum(order.blocks_of_first_epoch for order in orders),
            sum(order.blocks_per_epoch for order in orders),
        )

    def streams(self, split: str, max_tokens: int | None) -> tuple[NamedStream, ...]:
        whole = [
            NamedStream.of(source.name, stream)
            for source in self.mixture
            if (stream := getattr(source.store, split)).n_tokens >= 2
        ]
        total = sum(stream.tokens.n_tokens for stream in whole)
        if split == "train" or max_tokens is None or max_tokens >= total:
            return tuple(whole)
        cut = []
        for named in whole:
            limit = max(2, -(-named.tokens.n_tokens * max_tokens // total))
            start_of_stream = JoinedStream(self.dir, (named.tokens,), (limit,))
            cut.append(NamedStream(named.name, start_of_stream, named.bytes_per_token))
        return tuple(cut)

    def describe(self) -> dict[str, Any]:
        sources = []
        for source in self.mixture:
            fingerprint = source.store.manifest.fingerprint
            found = {"name": source.name, "count": source.count, "store": str(source.store.dir)}
            sources.append({**found, "fingerprint": fingerprint})
        return {**super().describe(), "mixture": sources}

    def data_read(self, order: Order, samples: int) -> dict[str, Any]:
        return {}


def _joined_manifest(mixture: Sequence[WeightedStore]) -> Manifest:
    """A manifest that describes the text of all sources. It is never written."""
    manifests = [source.store.manifest for source in mixture]
    facts: dict[str, Any] = {
        "mixture_version": MIXTURE_VERSION,
        "data.mixture": [
            {"name": source.name, "count": source.count, "store": source.store.manifest.fingerprint}
            for source in mixture
        ],
    }
    fraction = max(manifest.facts["data.val_fraction"] for manifest in manifests)
    return replace(
        manifests[0],
        fingerprint=fingerprint_of(facts),
        facts={**facts, "data.val_fraction": fraction},
        sources=tuple(source for manifest in manifests for source in manifest.sources),
        duplicates=None,
        funnel=merged(manifest.funnel for manifest in manifests),
        splits={
            split: SplitInfo.sum(manifest.splits[split] for manifest in manifests)
            for split in SPLITS
        },
        shards=(),
    )
