"""Data that is still being made while the run trains: who opens it, and how all ranks wait for it together.

A rank that waited for a file while the others waited in a collective would end in their timeout, with no reason. So
ranks wait in step: several times a second each says, through the control group, whether the samples stand, whether it
knows of a failure, and whether it was asked to stop; all go on, or end, at the same moment and for the same reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from wikillm.config.schema import RunConfig
from wikillm.core.errors import StoppedError, WikiLLMError
from wikillm.core.log import say
from wikillm.core.units import format_seconds
from wikillm.core.world import World
from wikillm.data.read.corpus import Corpus, TrainingOrder
from wikillm.data.read.growing import POLL_SECONDS
from wikillm.data.read.open import open_corpus, stream_corpus
from wikillm.supervise.signals import StopSignals
from wikillm.train.collectives import ControlGroup

_SAY_EVERY_SECONDS = 10.0


def open_run_corpus(cfg: RunConfig, world: World) -> Corpus:
    """The corpus of a run: finished, or as soon as training can begin (data.streaming). (all ranks)"""
    if cfg.train.num_train_epochs is None:
        return stream_corpus(cfg.data, is_main=world.is_main, is_local_main=world.local_rank == 0)
    if cfg.data.streaming != "off" and not cfg.data.mixture:
        say(
            "note       train.num_train_epochs needs the number of tokens: "
            "the store is finished before training"
        )
    return open_corpus(cfg.data, is_main=world.is_main)


class DataWaiter:
    """Waits for samples. One vote per window as long as the builder is ahead.

    Args:
        on_small: called when the store turns out complete at the first wait, when nothing has been trained on yet: the
            place to refuse a corpus that is too small for the run. (all ranks)
    """

    def __init__(
        self,
        order: TrainingOrder,
        group: ControlGroup,
        signals: StopSignals,
        on_small: Callable[[], None] = lambda: None,
    ) -> None:
        self._order, self._group, self._signals, self._on_small = order, group, signals, on_small
        # samples that exist for every rank (None: all): the first window was waited for already
        self._agreed = order.covered_with(0)
        self._is_first = True

    def wait_for(self, stop: int) -> None:
        """Until the samples before `stop` stand for every rank. (all ranks, the same `stop`)

        Raises what ended the build, on every rank, or StoppedError when a signal came while there was nothing to read.
        """
        is_first, self._is_first = self._is_first, False
        if self._agreed is None or stop <= self._agreed:
            return
        start, said = time.monotonic(), 0.0
        while True:
            trouble = self._order.trouble(start)  # looked at first: what stands after it is final
            stands = self._order.covers(stop)
            asked_to_stop = self._signals.received is not None
            waits, fails, stops = self._group.any(
                not stands, not stands and trouble is not None, asked_to_stop
            )
            if fails:
                raise self._first(trouble if not stands else None)
            if not waits:
                break
            if stops:
                raise StoppedError(
                    f"Stopped by {self._signals.received or 'a signal to another rank'} while waiting for data; the "
                    "latest checkpoint is complete.",
                    fix="go on with the same command and --resume auto",
                )
            waited = time.monotonic() - start
            if waited - said >= _SAY_EVERY_SECONDS:
                said = waited
                say(f"waiting for data, {format_seconds(waited)} so far: {self._order.progress()}")
            time.sleep(POLL_SECONDS)
        self._agreed = self._order.covered_with(stop)
        if is_first and self._agreed is None:
            self._on_small()

    def _first(self, trouble: WikiLLMError | None) -> WikiLLMError:
        """The failure that the lowest rank knows of. (all ranks)"""
        known = [found for found in self._group.gather(trouble) if isinstance(found, WikiLLMError)]
        return known[0]
