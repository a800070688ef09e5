"""Read the committed shards of a token store that is still being built, in whole windows.

The build commits shards in order, and does not change them afterwards. `GrowingCorpus` polls the
files of the store for new shards. `GrowingOrder` is the order of its samples. Every sample equals
that of the finished store (see `order.blocks`), however fast the builder is. Ranks are not
synchronized here, but in `train.wait_for_data`.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from multiprocessing import parent_process
from typing import Any

import numpy as np
import numpy.typing as npt

from wikillm.config.schema_data import DataSection
from wikillm.core.errors import DataError, WikiLLMError
from wikillm.core.units import format_seconds
from wikillm.data.order.blocks import SampleOrder, SourceUse, TargetRanges
from wikillm.data.order.packing import PackedOrder
from wikillm.data.prepare.background import Builder
from wikillm.data.prepare.finish import describe_shards
from wikillm.data.prepare.plan import BuildPlan
from wikillm.data.read.corpus import Corpus, describe_store
from wikillm.data.store.manifest import MANIFEST_NAME, Manifest, ShardInfo, refuse_other_facts
from wikillm.data.store.store import Store, TokenStream, committed_shards
from wikillm.data.store.writer import shard_record_path
from wikillm.data.tokenizer.tokenizer import load_tokenizer
from wikillm.data.workers.exclusive import beside, read_failure

POLL_SECONDS = 0.1


class GrowingCorpus(Corpus):
    """The committed part of a token store that is still being built.

    Attributes:
        train: training tokens of the windows whose shards are all committed.
        val: held-out tokens of the first window, once `open` was called.
        manifest: manifest of the shards that were committed when `open` was called.
        builder: the builder, if this process started one.
        shards: records of all committed shards.
    """

    def __init__(self, plan: BuildPlan, cfg: DataSection, since: float) -> None:
        """`since`: Unix time at which the run requested the store. Older failures are ignored."""
        self.plan = plan
        self.window_shards = cfg.window_shards
        self.packing = cfg.packing
        self.stall_seconds = cfg.stall_seconds
        self.since = since
        self.builder: Builder | None = None
        self.dir = plan.store
        self.shards: list[ShardInfo] = []
        self.shards_in_windows = 0  # number of shards in `train`
        self.train = TokenStream(plan.store, "train", ())
        self._finished: Manifest | None = None
        self._grown_at = time.monotonic()
        self._has_same_facts = False  # True once build.json was read and has the facts of `plan`

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "builder": None}  # a copy in a DataLoader worker only reads

    @property
    def is_complete(self) -> bool:
        return self._finished is not None

    @property
    def has_window(self) -> bool:
        return self.shards_in_windows > 0 or self.is_complete

    @property
    def train_tokens(self) -> int | None:
        return self.train.n_tokens if self.is_complete else None

    def open(self) -> None:
        """Set `val` and `manifest`, once the first window exists."""
        self.val = self.first_window("val")
        self.manifest = self._manifest_now()

    def first_window(self, split: str) -> TokenStream:
        """The tokens of a split in the shards of the first window."""
        return TokenStream(self.dir, split, self.shards[: self.window_shards])

    def order(self, sequence_length: int, seed: int) -> GrowingOrder:
        return GrowingOrder(self, sequence_length, seed)

    def describe(self) -> dict[str, Any]:
        # The counts grow until the store is complete.
        return {**describe_store(self.dir, self._manifest_now()), "complete": self.is_complete}

    def _manifest_now(self) -> Manifest:
        """The manifest; during the build, a manifest of the shards that are committed now."""
        if self._finished is not None:
            return self._finished
        return describe_shards(self.plan, load_tokenizer(self.tokenizer_dir), self.shards, None)

    def refresh(self) -> None:
        """Look for new shards. Raises DataError if the store is damaged or has other facts."""
        if self.is_complete:
            return
        before = len(self.shards)
        if (self.dir / MANIFEST_NAME).exists():
            manifest = Store.open(self.dir).manifest
            refuse_other_facts(self.dir, manifest.facts, self.plan.facts)
            self._refuse_changed(list(manifest.shards[:before]))
            self._finished = manifest
            self.shards = list(manifest.shards)
        else:
            self._add_committed()
        if len(self.shards) > before:
            self._grown_at = time.monotonic()
        whole = len(self.shards)
        if not self.is_complete:
            whole -= whole % self.window_shards
        self.train.extend(self.shards[self.shards_in_windows : whole])
        self.shards_in_windows = whole

    def _add_committed(self) -> None:
        """Add the records of new committed shards, up to the first one that cannot be read yet."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            if not self._has_same_facts:
                made_from = json.loads((self.dir / "build.json").read_text(encoding="utf-8"))
                self._has_same_facts = made_from["fingerprint"] == self.plan.fingerprint
            if not self._has_same_facts:
                return  # the builder will refuse this folder
            committed = committed_shards(self.dir)
            if self.shards and committed > len(self.shards):
                self._refuse_changed([self._read_record(0)])
            for number in range(len(self.shards), committed):
                self.shards.append(self._read_record(number))

    def _read_record(self, number: int) -> ShardInfo:
        return ShardInfo.read(shard_record_path(self.dir, number))

    def _refuse_changed(self, current: list[ShardInfo]) -> None:
        """Raise DataError if shards changed: a build restarts when it refuses its encoder."""
        if current != self.shards[: len(current)]:
            raise DataError(
                "The token store was built again while this run was reading it.",
                got=f"{self.dir}: see {beside(self.plan.lock_base, '.log')} for the reason",
                fix="start again from step 0 in another run.dir, which reads the new store",
            )

    def failure(self, waiting_since: float) -> WikiLLMError | None:
        """Why no further shards are expected: the builder refused, died or stalled.

        The builder has stalled when it added no shard for `stall_seconds`, counted from the later
        of `waiting_since` (monotonic) and the last shard.
        """
        error = self.builder_failure()
        idle = time.monotonic() - max(waiting_since, self._grown_at)
        if error is None and idle > self.stall_seconds:
            error = DataError(
                "The build of the token store has stalled.",
                got=f"no new shard in {self.dir} for {format_seconds(idle)}; {self.progress()}",
                fix=f"look at {beside(self.plan.lock_base, '.log')}; "
                "start again with --resume auto; a larger data.stall_seconds waits longer",
            )
        return error

    def builder_failure(self) -> WikiLLMError | None:
        """Why the builder ended without a store; None if it runs or has finished."""
        error = self.builder.failure() if self.builder is not None else None
        return error or read_failure(self.plan.lock_base, self.since)

    def progress(self) -> str:
        """The progress of the builder as one line."""
        line = f"{len(self.shards)} shards are final"
        with suppress(OSError):
            line += f" ({beside(self.plan.lock_base, '.progress').read_text().strip()})"
        return line

    def close(self) -> None:
        if self.builder is not None:
            self.builder.stop()


class GrowingOrder:
    """The order of a growing store. Its methods wait for samples that do not exist yet.

    They raise the errors that `GrowingCorpus.failure` returns. A DataLoader worker reads ahead of
    training, so a long wait in a worker is no stall. The wait ends with an error when the builder
    fails or the parent process ends.
    """

    def __init__(self, corpus: GrowingCorpus, sequence_length: int, seed: int) -> None:
        self.corpus = corpus
        self.sequence_length = sequence_length
        self.seed = seed
        self._owner = os.getpid()
        self._order = self._make()

    def _make(self) -> SampleOrder | PackedOrder:
        corpus = self.corpus
        self._made_from = corpus.shards_in_windows
        shards = corpus.shards[: self._made_from]
        return corpus.order_of(shards, self.sequence_length, self.seed)

    def covers(self, stop: int) -> bool:
        """Whether all samples before `stop` exist. Refreshes the corpus unless they are known."""
        if not self._covers(stop):
            self.corpus.refresh()
            if self.corpus.shards_in_windows != self._made_from:
                self._order = self._make()
        return self._covers(stop)

    def _covers(self, stop: int) -> bool:
        return stop <= self._order.blocks_of_first_epoch or self.corpus.is_complete

    def end_of_committed(self, stop: int) -> int | None:
        """Index after the last sample that must exist when the samples before `stop` exist: shards
        are added in whole windows, so this is the end of a window. None means all samples.
        """
        if stop > self._order.blocks_of_first_epoch:
            return None
        return self._order.end_of_window(max(0, stop - 1))

    def sources_used(self, samples: int) -> tuple[SourceUse, ...]:
        return ()

    def wait_for(self, stop: int) -> None:
        """Wait until all samples before `stop` exist, in this process alone."""
        start = time.monotonic()
        parent = parent_process()
        while not self.covers(stop):
            if os.getpid() == self._owner:
                failure = self.corpus.failure(start)
            elif parent is not None and not parent.is_alive():
                failure = WikiLLMError("The training process of this DataLoader worker has ended.")
            else:
                failure = self.corpus.builder_failure()
            # The last shard may have been added just before the failure.
            if failure is not None and not self.covers(stop):
                raise failure
            time.sleep(POLL_SECONDS)

    def windows_before(self, sample: int) -> int:
        self.wait_for(sample)
        return self._order.windows_before(sample)

    def target_ranges(self, samples: npt.ArrayLike) -> list[TargetRanges]:
        self.wait_for(int(np.max(samples)) + 1)
        return self._order.target_ranges(samples)

    def targets_between(self, first: int, stop: int) -> int:
        self.wait_for(stop)
        return self._order.targets_between(first, stop)
