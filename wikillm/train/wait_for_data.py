"""Opens the corpus of a run, and waits for samples of a store that is still being built.

If one rank waited for a file alone, the others would wait in a collective until it times out, with
no reason given. So all ranks poll together: several times a second they agree whether the samples
exist, whether the build failed, and whether a stop was requested.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from wikillm.config.schema_data import DataSection
from wikillm.core.errors import StoppedError, WikiLLMError
from wikillm.core.log import say
from wikillm.core.units import format_seconds
from wikillm.core.world import World
from wikillm.data.read.corpus import Corpus, Order
from wikillm.data.read.growing import POLL_SECONDS, GrowingOrder
from wikillm.data.read.open import open_corpus, stream_corpus
from wikillm.supervise.signals import StopSignals
from wikillm.train.collectives import ControlGroup

_LOG_EVERY_SECONDS = 10.0


def open_run_corpus(data: DataSection, world: World, *, in_epochs: bool) -> Corpus:
    """The corpus of a run: finished, or with data.streaming its first window. (all ranks)

    Args:
        in_epochs: whether the horizon is in epochs, which needs the size of the finished store.
    """
    if not in_epochs:
        corpus = stream_corpus(data, is_main=world.is_main, is_local_main=world.local_rank == 0)
    else:
        if data.streaming != "off" and not data.mixture:
            say(
                "note       train.num_train_epochs needs the number of tokens: "
                "the store is finished before training"
            )
        corpus = open_corpus(data, is_main=world.is_main)
    if data.verify == "first_use":
        corpus.train.verify_on_first_use()
        corpus.val.verify_on_first_use()
    return corpus


class DataWaiter:
    """Waits for samples of a `GrowingOrder`; samples of any other order exist already.

    While the builder is ahead of training, waiting costs one vote per window.

    Args:
        on_complete: called at the first wait, before any training, if the store is complete by
            then; it may refuse a corpus that is too small for the run. (all ranks)
    """

    def __init__(
        self,
        order: Order,
        group: ControlGroup,
        signals: StopSignals,
        on_complete: Callable[[], None] = lambda: None,
    ) -> None:
        self._growing = order if isinstance(order, GrowingOrder) else None
        self._group = group
        self._signals = signals
        self._on_complete = on_complete
        # Number of samples that every rank can read; None means all. The first window exists.
        self._agreed = self._growing.end_of_committed(0) if self._growing else None
        self._is_first = True

    def wait_for(self, stop: int) -> None:
        """Return when every rank can read the samples before `stop`. (all ranks, the same `stop`)

        Raises, on every rank, the error that ended the build, or StoppedError when a stop was
        requested while samples were missing.
        """
        is_first = self._is_first
        self._is_first = False
        growing = self._growing
        if growing is None or self._agreed is None or stop <= self._agreed:
            return
        start = time.monotonic()
        logged = 0.0
        while True:
            # Read the failure before looking for samples: after a failure no samples are added.
            failure = growing.corpus.failure(start)
            exists = growing.covers(stop)
            is_asked = self._signals.received is not None
            waits, fails, stops = self._group.any(
                not exists, not exists and failure is not None, is_asked
            )
            if fails:
                raise self._first_error(None if exists else failure)
            if not waits:
                break
            if stops:
                raise StoppedError(
                    f"Stopped by {self._signals.received or 'a signal to another rank'} while "
                    "waiting for data; the latest checkpoint is complete.",
                    fix="resume with the same command and --resume auto",
                )
            waited = time.monotonic() - start
            if waited - logged >= _LOG_EVERY_SECONDS:
                logged = waited
                progress = growing.corpus.progress()
                say(f"waiting for data, {format_seconds(waited)} so far: {progress}")
            time.sleep(POLL_SECONDS)
        self._agreed = growing.end_of_committed(stop)
        if is_first and self._agreed is None:
            self._on_complete()

    def _first_error(self, failure: WikiLLMError | None) -> WikiLLMError:
        """The error of the lowest rank whose build failed. (all ranks)"""
        found = self._group.gather(failure)
        return next(error for error in found if isinstance(error, WikiLLMError))
