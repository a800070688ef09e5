"""A token store that may still be being built, as its readers see it: the final shards, in whole windows.

`Growth` looks at the store's files and keeps up with the builder; `GrowingOrder` is the order of its samples. The order
of what stands is that of the finished store, sample by sample (see data.order), so a run that reads ahead of nobody
and one that follows the builder read the same. Nothing here is agreed between ranks: that is `train.wait_for_data`'s.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.config.schema import Packing
from wikillm.core.errors import DataError, WikiLLMError
from wikillm.core.units import format_seconds
from wikillm.data.order.best_fit import PackedOrder, finished_order, packed_order
from wikillm.data.order.blocks import SampleOrder, window_ends
from wikillm.data.prepare.background import Builder
from wikillm.data.prepare.finish import describe_shards
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.prepare.shard import shard_record_path
from wikillm.data.read.mixed import MixedOrder
from wikillm.data.store.manifest import MANIFEST_NAME, Manifest, ShardInfo, refuse_other_facts
from wikillm.data.store.store import TAKEN_NAME, Store, TokenStream
from wikillm.data.tokenizer.tokenizer import load_tokenizer
from wikillm.data.workers.exclusive import beside, read_failure

POLL_SECONDS = 0.1


@dataclass
class Growth:
    """What stands of a store.

    Attributes:
        plan: of the store.
        window_shards: shards per window.
        stall_seconds: a builder that adds nothing for so long while somebody waits has stalled.
        since: Unix time when this run asked for the store; a failure before it was another's.
        builder: of this process, if it has started one.
        train: tokens of the windows that stand.
        manifest: of the finished store; None before.
    """

    plan: BuildPlan
    window_shards: int
    stall_seconds: float
    since: float
    builder: Builder | None = None
    manifest: Manifest | None = None
    shards: list[ShardInfo] = field(default_factory=list)
    train: TokenStream = field(init=False)

    def __post_init__(self) -> None:
        self.train = TokenStream(self.plan.store, "train", ())
        self.shards_in_windows = 0  # what `train` has
        self._grown_at = time.monotonic()
        self._is_ours = False  # the folder is known to be built from our facts

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "builder": None}  # a process that only reads

    @property
    def is_complete(self) -> bool:
        return self.manifest is not None

    @property
    def windows(self) -> tuple[int, ...]:
        """Where the windows of `train` end."""
        tokens = [shard.splits["train"].tokens for shard in self.shards[: self.shards_in_windows]]
        return window_ends(tokens, self.window_shards)

    def first_window(self, split: str) -> TokenStream:
        """A split of the first window's shards: what a run is evaluated on."""
        return TokenStream(self.plan.store, split, self.shards[: self.window_shards])

    def describe(self) -> Manifest:
        """The manifest, or what it would be with the shards that are known now."""
        if self.manifest is not None:
            return self.manifest
        return describe_shards(
            self.plan, load_tokenizer(self.plan.store / "tokenizer"), self.shards, None
        )

    def refresh(self) -> None:
        """Look at what has been added. Raises DataError when the store turns out to be another one, or damaged."""
        if self.is_complete:
            return
        before = len(self.shards)
        if (self.plan.store / MANIFEST_NAME).exists():
            manifest = Store.open(self.plan.store).manifest
            refuse_other_facts(self.plan.store, manifest.facts, self.plan.facts)
            self._refuse_changed(list(manifest.shards[:before]))
            self.manifest, self.shards = manifest, list(manifest.shards)
        else:
            self._read_taken()
        if len(self.shards) > before:
            self._grown_at = time.monotonic()
        whole = len(self.shards)
        if not self.is_complete:
            whole -= whole % self.window_shards
        self.train.extend(self.shards[self.shards_in_windows : whole])
        self.shards_in_windows = whole

    def _read_taken(self) -> None:
        """Add the records of shards that the builder has declared final; stop where one is being built again."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            if not self._is_ours:
                made_from = json.loads((self.plan.store / "build.json").read_text(encoding="utf-8"))
                self._is_ours = made_from["fingerprint"] == self.plan.fingerprint
            if not self._is_ours:
                return  # the builder will refuse it
            taken = int(
                json.loads((self.plan.store / TAKEN_NAME).read_text(encoding="utf-8"))["shards"]
            )
            if self.shards and taken > len(self.shards):
                self._refuse_changed([self._read_record(0)])
            for number in range(len(self.shards), taken):
                self.shards.append(self._read_record(number))

    def _read_record(self, number: int) -> ShardInfo:
        path = shard_record_path(self.plan.store, number)
        return ShardInfo.from_json(json.loads(path.read_text(encoding="utf-8")))

    def _refuse_changed(self, found: list[ShardInfo]) -> None:
        """A build that begins again, because an encoder was found to differ, changes what this run has read."""
        if found != self.shards[: len(found)]:
            raise DataError(
                "The token store was built again while this run was reading it.",
                got=f"{self.plan.store}: see {beside(self.plan.lock_base, '.log')} for the reason",
                fix="start again from step 0 in another run.dir; the new store is complete or goes on being built",
            )

    def trouble(self, waiting_since: float) -> WikiLLMError | None:
        """Why nothing more will come: the builder refused, died, or has stalled since `waiting_since` (monotonic)."""
        error = self.failure()
        idle = time.monotonic() - max(waiting_since, self._grown_at)
        if error is None and idle > self.stall_seconds:
            error = DataError(
                "The build of the token store has stalled.",
                got=f"no new shard in {self.plan.store} for {format_seconds(idle)}; {self.progress()}",
                fix=f"look at {beside(self.plan.lock_base, '.log')}; start again with --resume auto; "
                "data.stall_seconds=N waits longer",
            )
        return error

    def failure(self) -> WikiLLMError | None:
        """Why the builder ended without a store, where it has."""
        error = self.builder.trouble() if self.builder is not None else None
        return error or read_failure(self.plan.lock_base, self.since)

    def progress(self) -> str:
        """How far the builder is, in words."""
        line = f"{len(self.shards)} shards stand"
        with suppress(OSError):
            line += f" ({beside(self.plan.lock_base, '.progress').read_text().strip()})"
        return line

    def stop(self) -> None:
        """End this process's builder, if it has one."""
        if self.builder is not None:
            self.builder.stop()


class GrowingOrder:
    """The `SampleOrder` or `PackedOrder` of a growing store. Asked for samples that do not stand, it waits for them.

    Raises, then, what `Growth.trouble` gives. A copy in a loader process reads ahead of the training, so how long it
    has waited says nothing: it ends for a failure that was told, or with its parent, not because nothing came.
    """

    def __init__(
        self, growth: Growth, sequence_length: int, seed: int, packing: Packing = "concat"
    ) -> None:
        self.growth, self.sequence_length, self.seed, self.packing = (
            growth,
            sequence_length,
            seed,
            packing,
        )
        self._owner = os.getpid()
        self._order = self._make()

    def _make(self) -> SampleOrder | PackedOrder:
        growth = self.growth
        self._made_from = growth.shards_in_windows
        if self.packing == "best_fit":
            shards = growth.shards[: self._made_from]
            length = self.sequence_length
            return packed_order(
                growth.plan.store, growth.train, shards, growth.window_shards, length, self.seed
            )
        return SampleOrder(
            growth.train.n_tokens, self.sequence_length, self.seed, windows=growth.windows
        )

    def covers(self, stop: int) -> bool:
        """Do all samples before `stop` stand? Looks at the files where it must."""
        if not self._covers(stop):
            self.growth.refresh()
            if self.growth.shards_in_windows != self._made_from:
                self._order = self._make()
        return self._covers(stop)

    def _covers(self, stop: int) -> bool:
        return stop <= self._order.blocks_of_first_epoch or self.growth.is_complete

    def covered_with(self, stop: int) -> int | None:
        """Samples that stand whenever those before `stop` do, the same for every reader; None: all."""
        if stop > self._order.blocks_of_first_epoch:
            return None
        return self._order.end_of_window(max(0, stop - 1))

    def wait_for(self, stop: int) -> None:
        """Until all samples before `stop` stand. In this process alone."""
        start, parent = time.monotonic(), parent_process()
        while not self.covers(stop):
            if os.getpid() == self._owner:
                trouble = self.growth.trouble(start)
            else:
                is_orphan = parent is not None and not parent.is_alive()
                trouble = _orphaned() if is_orphan else self.growth.failure()
            if trouble is not None and not self.covers(
                stop
            ):  # it may have been the last shard before the trouble
                raise trouble
            time.sleep(POLL_SECONDS)

    def windows_before(self, sample: int) -> int:
        self.wait_for(sample)
        return self._order.windows_before(sample)

    def pieces(self, samples: npt.ArrayLike) -> list[list[tuple[int, int]]]:
        self.wait_for(int(np.max(samples)) + 1)
        return self._order.pieces(samples)

    def targets_between(self, first: int, stop: int) -> int:
        self.wait_for(stop)
        return self._order.targets_between(first, stop)


def _orphaned() -> WikiLLMError:
    return WikiLLMError("The process that read this batch for training has ended.")


def order_of(
    store: Store, sequence_length: int, seed: int, window_shards: int, packing: Packing = "concat"
) -> SampleOrder | PackedOrder | GrowingOrder | MixedOrder:
    """The order of a store's training samples; a finished and a growing store give the same."""
    if store.mixture is not None:
        return store.mixture.order(sequence_length, seed, window_shards, packing)
    if store.growth is not None:
        return GrowingOrder(store.growth, sequence_length, seed, packing)
    return finished_order(store, sequence_length, seed, window_shards, packing)


def epoch_sizes(
    store: Store, sequence_length: int, window_shards: int, packing: Packing
) -> tuple[int, int] | None:
    """Sequences in the first pass over the training split, and in each later one; None while it is not known.

    None also for a mixture that is not packed, which has no windows of its own: ceil((N - 1) / T) of all N tokens.
    """
    if (
        store.train_tokens is None
        or store.train_tokens < 2
        or (store.mixture is not None and packing == "concat")
    ):
        return None
    stores = [store] if store.mixture is None else [part.store for part in store.mixture.parts]
    orders = [finished_order(one, sequence_length, 0, window_shards, packing) for one in stores]
    return sum(order.blocks_of_first_epoch for order in orders), sum(
        order.blocks_per_epoch for order in orders
    )
