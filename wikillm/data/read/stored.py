"""A finished token store as a corpus."""

from __future__ import annotations

from typing import Any

from wikillm.config.schema import Packing
from wikillm.data.order.best_fit import PackedOrder
from wikillm.data.order.blocks import SampleOrder
from wikillm.data.read.corpus import Corpus, TrainingOrder, shards_read
from wikillm.data.store.store import Store, TokenStream


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
        self.train = store.train
        self.val = store.val if val is None else val

    def order(self, sequence_length: int, seed: int) -> SampleOrder | PackedOrder:
        return self.order_of(self.manifest.shards, sequence_length, seed)

    def epoch_sizes(self, sequence_length: int) -> tuple[int, int] | None:
        if self.train.n_tokens < 2:
            return None
        order = self.order(sequence_length, 0)
        return order.blocks_of_first_epoch, order.blocks_per_epoch

    def data_read(self, order: TrainingOrder, samples: int) -> dict[str, Any]:
        shards = order.windows_before(samples) * self.window_shards
        return shards_read(self.manifest.shards, shards)
