"""The interface of a corpus for training, evaluation and the command line.

`Corpus` has three implementations: a finished store (here), a store that is still being built
(`growing`) and a mixture of stores (`mixed`). `read.open` chooses between them; all other code uses
only the interface.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from wikillm.config.mixture import PERIOD
from wikillm.data.order.blocks import SampleOrder, SourceUse, TargetRanges, window_ends
from wikillm.data.order.packing import PackedOrder
from wikillm.data.read.packed import packed_order
from wikillm.data.store.manifest import Manifest, ShardInfo
from wikillm.data.store.store import Store, TokenStream

if TYPE_CHECKING:
    from wikillm.config.schema_types import Packing


class Order(Protocol):
    """Maps the number of a sample to its targets. `GrowingOrder` waits for missing samples."""

    @property
    def sequence_length(self) -> int: ...

    def target_ranges(self, samples: npt.ArrayLike) -> list[TargetRanges]:
        """The ranges [start, stop) of targets that make up each sample."""

    def targets_between(self, first: int, stop: int) -> int:
        """Number of targets in the samples [first, stop)."""

    def windows_before(self, sample: int) -> int:
        """Number of windows that the samples before `sample` read; 0 for a mixture."""

    def sources_used(self, samples: int) -> tuple[SourceUse, ...]:
        """What the first `samples` samples read from each source; () without a mixture."""


@dataclass(frozen=True, slots=True)
class WeightedStore:
    """One source of a mixture. `count`: samples of the source in every 4096."""

    name: str
    count: int
    store: Store

    @property
    def share(self) -> float:
        return self.count / PERIOD


@dataclass(frozen=True, slots=True)
class NamedStream:
    """A stream to evaluate on. `name`: name of its source in a mixture, else empty."""

    name: str
    tokens: TokenStream
    bytes_per_token: float

    @classmethod
    def of(cls, name: str, stream: TokenStream) -> NamedStream:
        return cls(name, stream, stream.text_bytes / stream.n_tokens)


class Corpus(Protocol):
    """Text to train and evaluate on. The methods here are those of a single finished store.

    Attributes:
        dir: folder of the store; of the first store in a mixture.
        shards: committed shards of a single store; () for a mixture.
        window_shards: number of shards in a window, which is permuted or packed as a whole.
        manifest: the manifest at the time the corpus was opened.
        mixture: the sources of a mixture; () for a single store.
    """

    dir: Path
    manifest: Manifest
    train: TokenStream
    val: TokenStream
    shards: Sequence[ShardInfo]
    window_shards: int
    packing: Packing
    mixture: tuple[WeightedStore, ...] = ()

    def order(self, sequence_length: int, seed: int) -> Order:
        """The order of the training samples, which is equal in a growing and a finished store."""

    def epoch_sizes(self, sequence_length: int) -> tuple[int, int] | None:
        """Number of sequences in the first epoch, and in each later epoch.

        None while the store is being built, and for a mixture without packing: callers then use
        ceil((N - 1) / T) for all N tokens.
        """
        if self.train_tokens is None or self.train_tokens < 2:
            return None
        order = self.order_of(self.shards, sequence_length, 0)
        return order.blocks_of_first_epoch, order.blocks_per_epoch

    def data_read(self, order: Order, samples: int) -> dict[str, Any]:
        """Number of shards that the first `samples` samples read, and a digest of their tokens.

        Empty for a mixture, whose stores are always finished before they are read.
        """
        count = order.windows_before(samples) * self.window_shards
        text = "".join(shard.splits["train"].tok_sha256 for shard in self.shards[:count])
        return {"shards": count, "sha256": hashlib.sha256(text.encode()).hexdigest()}

    @property
    def tokenizer_dir(self) -> Path:
        return self.dir / "tokenizer"

    @property
    def train_tokens(self) -> int | None:
        """Tokens of the whole training split; None while the store is being built."""
        return self.train.n_tokens

    def streams(self, split: str, max_tokens: int | None) -> tuple[NamedStream, ...]:
        """The streams of a split, one for each source that has text in it.

        In a mixture, `max_tokens` targets of `val` are divided over the sources by their size.
        """
        return (NamedStream.of("", getattr(self, split)),)

    def order_of(
        self, shards: Sequence[ShardInfo], sequence_length: int, seed: int
    ) -> SampleOrder | PackedOrder:
        """The order of `train`, whose shards are `shards`."""
        window = self.window_shards
        if self.packing == "best_fit":
            return packed_order(self.dir, self.train, shards, window, sequence_length, seed)
        ends = window_ends([shard.splits["train"].tokens for shard in shards], window)
        return SampleOrder(self.train.n_tokens, sequence_length, seed, windows=ends)

    def describe(self) -> dict[str, Any]:
        """The description of the text that a run writes to data.json."""
        return {**describe_store(self.dir, self.manifest), "complete": True}

    def close(self) -> None:
        """Stop the builder process if this process started one. Finished shards are kept."""
        return


class StoredCorpus(Corpus):
    """A finished store, read in windows of `window_shards`. `val` replaces its held-out split."""

    def __init__(
        self,
        store: Store,
        window_shards: int,
        packing: Packing = "concat",
        val: TokenStream | None = None,
    ) -> None:
        self.store = store
        self.window_shards = window_shards
        self.packing = packing
        self.dir = store.dir
        self.manifest = store.manifest
        self.shards = store.manifest.shards
        self.train = store.train
        self.val = store.val if val is None else val

    def order(self, sequence_length: int, seed: int) -> SampleOrder | PackedOrder:
        return self.order_of(self.shards, sequence_length, seed)


def proportions(mixture: Sequence[WeightedStore]) -> str | None:
    """The mixture as one line. Runs with equal lines and stores read the same samples."""
    return ", ".join(f"{source.name} {source.count}/{PERIOD}" for source in mixture) or None


def describe_store(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The description of one store as JSON."""
    return {
        "store": str(folder),
        "fingerprint": manifest.fingerprint,
        "sources": [asdict(source) for source in manifest.sources],
        "splits": {name: asdict(split) for name, split in manifest.splits.items()},
        "tokenizer": asdict(manifest.tokenizer),
        "funnel": asdict(manifest.funnel),
    }
