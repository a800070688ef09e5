"""The order of a mixture: sample n of the mixture is sample m of source s, a pure function of n.

A table of 4096 places says which source each sample comes from. The table is repeated without end.
Source k has exactly `counts[k]` places in it, spread evenly, so the mixture has its proportions
from the first samples on. With the counts up to each place, finding (s, m) from n takes one
division and two look-ups. Each source has its own order and epochs, so a small source with a large
weight is read more often. The state of a run is still one integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wikillm.config.mixture import PERIOD
from wikillm.data.order.blocks import SampleOrder, SourceUse, TargetRanges
from wikillm.data.order.packing import PackedOrder
from wikillm.data.order.permutation import Ints


class MixtureTable:
    """Assigns each sample to a source: source k gets `counts[k]` of every `sum(counts)` samples."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.period = int(self.counts.sum())
        sources = np.repeat(np.arange(len(counts)), self.counts)
        # Sample i of c belongs at (2i + 1) / 2c of the period; of equal ones the lower source is
        # first. Floats are exact enough: quotients of integers below 2^13 are equal only in a real
        # tie.
        places = np.concatenate([(2 * np.arange(c) + 1) / c for c in self.counts.tolist()])
        self.sources = sources[np.lexsort((sources, places))]
        chosen = self.sources[:, None] == np.arange(len(counts))
        # before[p, k]: samples of source k in the places before p
        self.before = np.zeros((self.period + 1, len(counts)), dtype=np.int64)
        np.cumsum(chosen, axis=0, out=self.before[1:])

    def locate(self, samples: npt.ArrayLike) -> tuple[Ints, Ints]:
        """The source of each sample, and its number within that source; `samples` has shape [n]."""
        rounds, places = np.divmod(np.asarray(samples, dtype=np.int64), self.period)
        sources = self.sources[places]
        return sources, rounds * self.counts[sources] + self.before[places, sources]

    def samples_before(self, sample: int) -> Ints:
        """Number of samples in [0, sample) that come from each source, shape [sources]."""
        rounds, place = divmod(sample, self.period)
        return rounds * self.counts + self.before[place]


@dataclass(frozen=True, slots=True)
class SourceOrder:
    """The order of one source.

    `count`: samples of the source in every 4096; `start`: position of its first token in the
    joined stream; `targets`: targets in one epoch.
    """

    name: str
    count: int
    order: SampleOrder | PackedOrder
    start: int
    targets: int


class MixedOrder:
    """The order of a mixture's samples, with the interface of `SampleOrder`."""

    def __init__(self, sources: Sequence[SourceOrder]) -> None:
        self.sources = tuple(sources)
        self.table = MixtureTable([source.count for source in sources])

    @property
    def sequence_length(self) -> int:
        return self.sources[0].order.sequence_length

    def windows_before(self, sample: int) -> int:
        return 0

    def target_ranges(self, samples: npt.ArrayLike) -> list[TargetRanges]:
        """The targets [start, stop) of each sample, as positions in the joined stream."""
        sources, within = self.table.locate(np.atleast_1d(np.asarray(samples, dtype=np.int64)))
        found: list[TargetRanges] = [[] for _ in sources]
        for k in np.unique(sources).tolist():
            rows = np.flatnonzero(sources == k)
            base = self.sources[k].start
            of_source = self.sources[k].order.target_ranges(within[rows])
            for row, ranges in zip(rows.tolist(), of_source, strict=True):
                found[row] = [(base + start, base + stop) for start, stop in ranges]
        return found

    def targets_between(self, first: int, stop: int) -> int:
        """Number of targets in the samples [first, stop), over all sources."""
        starts = self.table.samples_before(first).tolist()
        stops = self.table.samples_before(stop).tolist()
        return sum(
            source.order.targets_between(a, b)
            for source, a, b in zip(self.sources, starts, stops, strict=True)
        )

    def sources_used(self, samples: int) -> tuple[SourceUse, ...]:
        """What the first `samples` samples read from each source; padding is not counted.

        A packed sequence counts with the average number of targets, which is exact at the end of
        an epoch. The exact number would take longer to compute with every log line.
        """
        found = []
        for source, count in zip(
            self.sources, self.table.samples_before(samples).tolist(), strict=True
        ):
            order = source.order
            if isinstance(order, PackedOrder):
                tokens = round(count * source.targets / order.blocks_per_epoch)
            else:
                tokens = order.targets_between(0, count)
            share = source.count / PERIOD
            epochs = tokens / source.targets
            found.append(SourceUse(source.name, share, count, tokens, epochs))
        return tuple(found)
