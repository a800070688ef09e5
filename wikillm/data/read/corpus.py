"""What training, evaluation and the command line need of a corpus, whatever it consists of.

`Corpus` has three implementations: a finished store (here), a store that is still being built
(`growing`) and several stores that are read as one (`mixed`). `read.open` chooses; nothing else
asks which one it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from wikillm.config.mixture import PERIOD
from wikillm.data.order.blocks import SampleOrder, SourceUse, TargetRanges, window_ends
from wikillm.data.order.packing import PackedOrder
from wikillm.data.read.packed import packed_order
from wikillm.data.store.manifest import Manifest, ShardInfo
from wikillm.data.store.store import Store, TokenStream

if TYPE_CHECKING:
    from wikillm.config.schema import Packing


class Tokens(Protocol):
    """A token stream as the loader reads it: `read(start, stop)` gives the ids [start, stop)."""

    @property
    def n_tokens(self) -> int: ...

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint32]: ...


class Order(Protocol):
    """Which targets are the n-th sample of training."""

    @property
    def sequence_length(self) -> int: ...

    def target_ranges(self, samples: npt.ArrayLike) -> list[TargetRanges]:
        """The targets [start, stop) that each sample is made of."""

    def targets_between(self, first: int, stop: int) -> int:
        """Number of targets in the samples [first, stop)."""


class TrainingOrder(Order, Protocol):
    """The order of a corpus. Samples of a `GrowingOrder` may have to be waited for."""

    def windows_before(self, sample: int) -> int:
        """Windows that the samples before `sample` come from; 0 for a mixture, which has none."""

    def used(self, samples: int) -> tuple[SourceUse, ...]:
        """What the first `samples` samples take of each source of a mixture; () without one."""


@dataclass(frozen=True, slots=True)
class WeightedStore:
    """One source of a mixture. `count`: its samples among every 4096."""

    name: str
    count: int
    store: Store

    @property
    def share(self) -> float:
        return self.count / PERIOD


@dataclass(frozen=True, slots=True)
class NamedStream:
    """A stream to evaluate on; `name` is that of its source in a mixture, else empty."""

    name: str
    tokens: TokenStream
    bytes_per_token: float

    @classmethod
    def of(cls, name: str, stream: TokenStream) -> NamedStream:
        return cls(name, stream, stream.text_bytes / stream.n_tokens)


class Corpus(Protocol):
    """Text to train and evaluate on. The methods that have a body are those of one finished store.

    Attributes:
        dir: the folder of the store, or of the first one.
        shards: the final ones, of a single store.
        window_shards: shards that are read, and permuted or packed, together.
        manifest: as it was when the corpus was opened.
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

    def order(self, sequence_length: int, seed: int) -> TrainingOrder:
        """The order of the training samples; a finished and a growing store give the same."""

    def epoch_sizes(self, sequence_length: int) -> tuple[int, int] | None:
        """Sequences in the first pass over the training split, and in each later one.

        None while it is unknown, and for a mixture that is not packed, which has no windows of its
        own: then it is ceil((N - 1) / T) of all N tokens.
        """
        if self.train_tokens is None or self.train_tokens < 2:
            return None
        order = self.order_of(self.shards, sequence_length, 0)
        return order.blocks_of_first_epoch, order.blocks_per_epoch

    def data_read(self, order: TrainingOrder, samples: int) -> dict[str, Any]:
        """The shards that the first samples come from, and a digest of their training tokens.

        Empty for a mixture: its stores are always finished before they are read.
        """
        count = order.windows_before(samples) * self.window_shards
        text = "".join(shard.splits["train"].tok_sha256 for shard in self.shards[:count])
        return {"shards": count, "sha256": hashlib.sha256(text.encode()).hexdigest()}

    @property
    def tokenizer_dir(self) -> Path:
        return self.dir / "tokenizer"

    @property
    def train_tokens(self) -> int | None:
        """Tokens of the whole training split; None while it is being built."""
        return self.train.n_tokens

    def streams(self, split: str, max_tokens: int | None) -> tuple[NamedStream, ...]:
        """The streams of a split, one for each source that has text in it.

        Of a mixture's `val` each is cut to its part of the first `max_tokens` targets.
        """
        return (NamedStream.of("", getattr(self, split)),)

    def order_of(
        self, shards: Sequence[ShardInfo], sequence_length: int, seed: int
    ) -> SampleOrder | PackedOrder:
        """The order of `train`, which consists of these shards."""
        window = self.window_shards
        if self.packing == "best_fit":
            return packed_order(self.dir, self.train, shards, window, sequence_length, seed)
        ends = window_ends([shard.splits["train"].tokens for shard in shards], window)
        return SampleOrder(self.train.n_tokens, sequence_length, seed, windows=ends)

    def describe(self) -> dict[str, Any]:
        """What a run records about its text (data.json)."""
        return described(self.dir, self.manifest, True)

    def close(self) -> None:
        """End the builder process, if this process started one. What it has built stays."""
        return


class StoredCorpus(Corpus):
    """A finished store, read in windows of so many shards. `val`: instead of its held-out split."""

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
    """A mixture in one line: with the same line and stores, two runs read the same samples."""
    return ", ".join(f"{one.name} {one.count}/{PERIOD}" for one in mixture) or None


def described(folder: Path, manifest: Manifest, is_complete: bool) -> dict[str, Any]:
    """`Corpus.describe` of one store."""
    return {
        "store": str(folder),
        "fingerprint": manifest.fingerprint,
        "sources": [asdict(source) for source in manifest.sources],
        "complete": is_complete,  # False: it was still being built, and the counts grow
        "splits": {name: asdict(split) for name, split in manifest.splits.items()},
        "tokenizer": asdict(manifest.tokenizer),
        "funnel": asdict(manifest.funnel),
    }
