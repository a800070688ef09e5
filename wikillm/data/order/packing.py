"""Best-fit packing: join documents to sequences, and cut only documents that are too long for one.

The targets of a document are its own tokens, EOS included; its first token is predicted from the
EOS before it. So every token but the stream's first is a target once per epoch, as without packing.
A document longer than a sequence is cut into whole sequences and a rest. Documents and rests,
longest first, go into the sequence with the least room that still holds them (best-fit decreasing;
arXiv:2404.10830 for language models). The room that stays free at the end of a sequence is padding.

Each window of shards is packed separately, so its samples depend on that window alone, as in
`order.blocks`; later epochs permute the sequences of all windows. `read.packed` stores packings
on disk.
"""

from __future__ import annotations

import io
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from wikillm.core.errors import DataError
from wikillm.core.files import write_atomic
from wikillm.data.order.blocks import TargetRanges, WindowedOrder
from wikillm.data.order.permutation import Ints, Permutation, keyed_hash


def best_fit(lengths: Ints, capacity: int) -> Ints:
    """Return the bin of each item, numbered from 0, by best-fit decreasing.

    Bins with equal room are filled together, so the cost grows with the number of distinct (length,
    room) pairs, not with the number of items. Lengths 5, 3, 4, 2 at capacity 8 give bins 0, 0, 1,
    1: 5 and 3 fill the first bin, 4 and 2 leave room for 2 in the second.

    Args:
        lengths: length of each item in [1, capacity], shape [n]; ties are placed in order.

    Returns an array of shape [n].
    """
    by_length = np.argsort(-lengths, kind="stable")
    counts = np.bincount(lengths, minlength=1)
    found = np.empty(len(lengths), dtype=np.int64)  # bin of each item, in the order of `by_length`
    bins = 0
    done = 0
    rooms: list[int] = []  # the distinct rooms above 0 of all bins, ascending
    bins_with: dict[int, list[int]] = {}  # room -> numbers of the bins with that room

    def add_bins(room: int, numbers: list[int]) -> None:
        if room and numbers:
            if room not in bins_with:
                insort(rooms, room)
                bins_with[room] = []
            bins_with[room] += numbers

    for size in np.flatnonzero(counts)[::-1].tolist():
        end = done + int(counts[size])
        while done < end:
            at = bisect_left(rooms, size)
            room = rooms[at] if at < len(rooms) else capacity
            # A bin stays the best fit until it has no room for another item of this size.
            per_bin = room // size
            wanted = -(-(end - done) // per_bin)
            # Take bins with this room, or open new ones.
            if at < len(rooms):
                chosen = bins_with[room][-wanted:]
                del bins_with[room][-wanted:]
                if not bins_with[room]:
                    del bins_with[room], rooms[at]
            else:
                chosen = list(range(bins, bins + wanted))
                bins += wanted
            # Fill all but the last of these bins completely, and return them with their new room.
            placed = min(end - done, len(chosen) * per_bin)
            filled = np.repeat(np.asarray(chosen, dtype=np.int64), per_bin)
            found[done : done + placed] = filled[:placed]
            in_last = placed - (len(chosen) - 1) * per_bin  # items in the last chosen bin
            add_bins(room - per_bin * size, chosen[:-1])
            add_bins(room - in_last * size, chosen[-1:])
            done += placed
    out = np.empty(len(lengths), dtype=np.int64)
    out[by_length] = found
    return out


@dataclass(frozen=True, slots=True, eq=False)
class PackedWindow:
    """The packed sequences of a window.

    Sequence k holds the targets [first[i], stop[i]) for offsets[k] <= i < offsets[k + 1]. Targets
    count from the window's first. `offsets` is [sequences + 1], `first` and `stop` are [ranges].
    """

    offsets: Ints
    first: Ints
    stop: Ints

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    def bounds(self, sequences: Ints) -> tuple[Ints, Ints, Ints]:
        """First targets and ends of the ranges of these sequences; number of ranges of each."""
        low = self.offsets[sequences]
        counts = self.offsets[sequences + 1] - low
        # The numbers of the ranges: low[0], low[0] + 1, ..., low[1], ...
        at = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
        return self.first[at], self.stop[at], counts

    @classmethod
    def of(cls, ends: Ints, is_first: bool, sequence_length: int) -> PackedWindow:
        """Pack a window.

        Args:
            ends: ends of the window's documents, in tokens from the start of the window.
            is_first: whether this is the stream's first window, whose first token is no target.
        """
        # Token t + 1 is target t, so the documents' targets end one earlier in the first window.
        ends = ends - 1 if is_first else ends
        first = np.concatenate([np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1]])
        is_filled = ends > first
        first, ends = first[is_filled], ends[is_filled]
        # Cut long documents into whole sequences, and pack the rests.
        whole, rest = np.divmod(ends - first, sequence_length)
        number = np.cumsum(whole) - whole  # number of the document's first whole sequence
        cuts = np.repeat(first - number * sequence_length, whole)
        cuts = cuts + np.arange(int(whole.sum())) * sequence_length
        rests = np.flatnonzero(rest)
        bins_of_rests = len(cuts) + best_fit(rest[rests], sequence_length)
        bins = np.concatenate([np.arange(len(cuts)), bins_of_rests])
        # List the ranges of all sequences, sorted by sequence and position.
        starts = np.concatenate([cuts, ends[rests] - rest[rests]])
        stops = np.concatenate([cuts + sequence_length, ends[rests]])
        order = np.lexsort((starts, bins))
        sequences = int(bins.max()) + 1 if len(bins) else 0
        offsets = np.searchsorted(bins[order], np.arange(sequences + 1))
        return cls(offsets, starts[order], stops[order])

    def write(self, path: Path) -> None:
        """Write one int64 array: the number of sequences, `offsets`, `first`, `stop`."""
        array = np.concatenate([[self.sequences], self.offsets, self.first, self.stop])
        file = io.BytesIO()
        np.save(file, array.astype(np.int64))
        write_atomic(path, file.getvalue())

    @classmethod
    def read(cls, path: Path, targets: int) -> PackedWindow | None:
        """Map a file of `write`. None if it is missing or damaged, or has not `targets` targets."""
        try:
            array = np.asarray(np.lib.format.open_memmap(path, mode="r"))
            bounds = int(array[0]) + 2
            first, stop = array[bounds:].reshape(2, -1)
            found = cls(array[1:bounds], first, stop)
            is_sound = int(found.offsets[-1]) == len(first) and int((stop - first).sum()) == targets
        except (OSError, ValueError, IndexError):
            return None
        return found if is_sound else None


class PackedOrder(WindowedOrder):
    """The order of a stream's packed sequences, with the interface of `SampleOrder`.

    Args:
        windows: (first target, packing) of every window of the stream.
    """

    def __init__(
        self, windows: Sequence[tuple[int, PackedWindow]], sequence_length: int, seed: int
    ) -> None:
        super().__init__(sequence_length, [window.sequences for _, window in windows])
        self.seed = seed
        self._windows = tuple(windows)
        if not self.blocks_per_epoch:
            raise DataError("A stream of fewer than two tokens has nothing to predict.")

    @property
    def blocks_per_epoch(self) -> int:
        return self.blocks_of_first_epoch  # all epochs have the same sequences

    def _ranges(self, samples: Ints) -> list[TargetRanges]:
        found: list[TargetRanges] = [[]] * len(samples)
        windows, sequences = self._locate(samples)
        for k in set(windows.tolist()):
            rows = np.flatnonzero(windows == k)
            base, window = self._windows[k]
            first, stop, counts = window.bounds(sequences[rows])
            ranges = zip((base + first).tolist(), (base + stop).tolist(), strict=True)
            for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
                found[row] = list(islice(ranges, count))
        return found

    def targets_between(self, first: int, stop: int) -> int:
        """Number of targets in the samples [first, stop)."""
        windows, sequences = self._locate(np.arange(first, stop))
        found = 0
        for k in set(windows.tolist()):
            starts, stops, _ = self._windows[k][1].bounds(sequences[windows == k])
            found += int((stops - starts).sum())
        return found

    def _locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """The window of each sample, and which of the window's sequences the sample is."""
        epochs, index = np.divmod(samples, self.blocks_per_epoch)
        for epoch in set(epochs.tolist()) - {0}:
            here = epochs == epoch
            shuffled = Permutation(self.blocks_per_epoch, keyed_hash(self.seed, "packed", epoch))
            index[here] = shuffled(index[here])
        windows = np.searchsorted(self._samples, index, side="right") - 1
        sequences = index - self._samples[windows]
        for k in set(windows[epochs == 0].tolist()):
            here = (epochs == 0) & (windows == k)
            key = keyed_hash(self.seed, "packed", 0, k)
            within = Permutation(self._windows[k][1].sequences, key)
            sequences[here] = within(sequences[here])
        return windows, sequences
