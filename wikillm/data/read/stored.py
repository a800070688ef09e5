"""A finished token store as a corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wikillm.data.order.best_fit import PackedOrder
from wikillm.data.order.blocks import SampleOrder
from wikillm.data.read.corpus import Corpus
from wikillm.data.store.store import Store, TokenStream

if TYPE_CHECKING:
    from wikillm.config.schema import Packing


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
