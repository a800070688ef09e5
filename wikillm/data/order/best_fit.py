"""Best-fit packing: which documents share a sequence, so that none is cut that would fit into one.

The targets of a document are its own tokens, EOS included; the first of them is predicted from the EOS before it, so
every token but the stream's first is a target here too, once per epoch. A document longer than a sequence gives whole
sequences and a rest. Documents and rests, the longest first, go where the least room is left that holds them
(best-fit decreasing; arXiv:2404.10830 for language models), and what stays free at the end of a sequence is padding.

What is packed together is a window of shards, so the samples of a window depend on it alone, as in `order.py`; the
later epochs permute the sequences of all windows. A window's packing follows from its documents' lengths and is kept
in STORE/packed, named after what it was made from: one process computes it, the others map the file.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from wikillm.config.schema import Packing
from wikillm.core.errors import DataError
from wikillm.core.files import write_atomic
from wikillm.core.log import logger
from wikillm.data.order.blocks import (
    Permutation,
    Pieces,
    RecentPieces,
    SampleOrder,
    Windows,
    keyed_hash,
)
from wikillm.data.store.manifest import ShardInfo
from wikillm.data.store.store import Store, TokenStream
from wikillm.data.workers.exclusive import exclusive

PACKING_VERSION = 1
FOLDER = "packed"
Ints = npt.NDArray[np.int64]


def best_fit(lengths: Ints, capacity: int) -> Ints:
    """The bin of each item, numbered from 0, by best-fit decreasing. Lengths in [1, capacity]; equal ones in order.

    Bins of equal room are filled together, so the cost goes with the pairs of length and room that meet, not with the
    items. Returns an array of the shape of `lengths`, [n].
    """
    by_length = np.argsort(-lengths, kind="stable")
    counts = np.bincount(lengths, minlength=1)
    found = np.empty(len(lengths), dtype=np.int64)  # by rank in `by_length`
    bins, done = 0, 0
    rooms: list[int] = []  # ascending: every room that some bin has, but none
    having: dict[int, list[int]] = {}  # room -> its bins

    def keep(room: int, numbers: list[int]) -> None:
        if room and numbers:
            if room not in having:
                insort(rooms, room)
                having[room] = []
            having[room] += numbers

    for size in np.flatnonzero(counts)[::-1].tolist():
        end = done + int(counts[size])
        while done < end:
            at = bisect_left(rooms, size)
            room = rooms[at] if at < len(rooms) else capacity
            each = (
                room // size
            )  # the bin that was just filled has the least room, so it is filled on
            wanted = -(-(end - done) // each)
            if at < len(rooms):
                chosen = having[room][-wanted:]
                del having[room][-wanted:]
                if not having[room]:
                    del having[room], rooms[at]
            else:
                chosen = list(range(bins, bins + wanted))
                bins += wanted
            placed = min(end - done, len(chosen) * each)
            found[done : done + placed] = np.repeat(np.asarray(chosen, dtype=np.int64), each)[
                :placed
            ]
            last = placed - (len(chosen) - 1) * each  # items in the last of these bins
            keep(room - each * size, chosen[:-1])
            keep(room - last * size, chosen[-1:])
            done += placed
    out = np.empty(len(lengths), dtype=np.int64)
    out[by_length] = found
    return out


@dataclass(frozen=True, slots=True, eq=False)
class PackedWindow:
    """The sequences of a window: the k-th holds its targets [first[i], stop[i]) for offsets[k] <= i < offsets[k + 1].

    `offsets` is [sequences + 1], `first` and `stop` are [stretches]; all count from the window's first target.
    """

    offsets: Ints
    first: Ints
    stop: Ints

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    def bounds(self, sequences: Ints) -> tuple[Ints, Ints, Ints]:
        """The stretches of these sequences, one after the other: first target, last + 1; and how many each has."""
        low, counts = self.offsets[sequences], self.offsets[sequences + 1] - self.offsets[sequences]
        at = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
        return self.first[at], self.stop[at], counts

    @classmethod
    def of(cls, ends: Ints, is_first: bool, sequence_length: int) -> PackedWindow:
        """Pack a window.

        Args:
            ends: where its documents end, in tokens from its start.
            is_first: of the stream, whose first token is no target: the window's targets are counted without it.
        """
        ends = ends - 1 if is_first else ends
        first = np.concatenate([np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1]])
        first, ends = first[ends > first], ends[ends > first]
        whole, rest = np.divmod(ends - first, sequence_length)
        number = np.cumsum(whole) - whole  # of the document's first whole sequence
        cuts = (
            np.repeat(first - number * sequence_length, whole)
            + np.arange(int(whole.sum())) * sequence_length
        )
        rests = np.flatnonzero(rest)
        bins = np.concatenate(
            [np.arange(len(cuts)), len(cuts) + best_fit(rest[rests], sequence_length)]
        )
        starts = np.concatenate([cuts, ends[rests] - rest[rests]])
        stops = np.concatenate([cuts + sequence_length, ends[rests]])
        order = np.lexsort((starts, bins))
        sequences = int(bins.max()) + 1 if len(bins) else 0
        return cls(
            np.searchsorted(bins[order], np.arange(sequences + 1)), starts[order], stops[order]
        )

    def write(self, path: Path) -> None:
        """As one array of int64: the number of sequences, `offsets`, `first`, `stop`."""
        file = io.BytesIO()
        np.save(
            file,
            np.concatenate([[self.sequences], self.offsets, self.first, self.stop]).astype(
                np.int64
            ),
        )
        write_atomic(path, file.getvalue())

    @classmethod
    def read(cls, path: Path, targets: int) -> PackedWindow | None:
        """Map what `write` wrote; None unless it is there, whole, and has so many targets."""
        try:
            array = np.asarray(np.lib.format.open_memmap(path, mode="r"))
            bounds = int(array[0]) + 2
            first, stop = array[bounds:].reshape(2, -1)
            found = cls(array[1:bounds], first, stop)
            is_sound = int(found.offsets[-1]) == len(first) and int((stop - first).sum()) == targets
        except (OSError, ValueError, IndexError):
            return None
        return found if is_sound else None


class PackedOrder(Windows):
    """The order of a stream's packed sequences, with the face of `SampleOrder`.

    Args:
        windows: all windows of the stream, each with its first target.
    """

    def __init__(
        self, windows: Sequence[tuple[int, PackedWindow]], sequence_length: int, seed: int
    ) -> None:
        self.sequence_length, self.seed, self._windows = sequence_length, seed, tuple(windows)
        self._recent = RecentPieces()
        self._samples = np.cumsum([0, *(window.sequences for _, window in windows)])
        if not self.blocks_per_epoch:
            raise DataError("A stream of fewer than two tokens has nothing to predict.")

    @property
    def blocks_per_epoch(self) -> int:
        return self.blocks_of_first_epoch  # each epoch has the same sequences

    def pieces(self, samples: npt.ArrayLike) -> list[Pieces]:
        """The targets [start, stop) of each sample: a stretch per document, together at most `sequence_length`."""
        return self._recent.look_up(samples, self._pieces)

    def _pieces(self, samples: Ints) -> list[Pieces]:
        found: list[Pieces] = [[]] * len(samples)
        windows, sequences = self._place(samples)
        for k in set(windows.tolist()):
            rows, (base, window) = np.flatnonzero(windows == k), self._windows[k]
            first, stop, counts = window.bounds(sequences[rows])
            stretches = zip((base + first).tolist(), (base + stop).tolist(), strict=True)
            for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
                found[row] = list(islice(stretches, count))
        return found

    def targets_between(self, first: int, stop: int) -> int:
        """Number of targets in the samples [first, stop): what a global batch's loss is divided by."""
        windows, sequences = self._place(np.arange(first, stop))
        found = 0
        for k in set(windows.tolist()):
            starts, stops, _ = self._windows[k][1].bounds(sequences[windows == k])
            found += int((stops - starts).sum())
        return found

    def _place(self, samples: Ints) -> tuple[Ints, Ints]:
        """Window, and sequence within it, of each sample."""
        epochs, place = np.divmod(samples, self.blocks_per_epoch)
        for epoch in set(epochs.tolist()) - {0}:
            here = epochs == epoch
            shuffled = Permutation(self.blocks_per_epoch, keyed_hash(self.seed, "packed", epoch))
            place[here] = shuffled(place[here])
        windows = np.searchsorted(self._samples, place, side="right") - 1
        sequences = place - self._samples[windows]
        for k in set(windows[epochs == 0].tolist()):
            here = (epochs == 0) & (windows == k)
            within = Permutation(
                self._windows[k][1].sequences, keyed_hash(self.seed, "packed", 0, k)
            )
            sequences[here] = within(sequences[here])
        return windows, sequences


_PACKED: WeakKeyDictionary[TokenStream, dict[Path, PackedWindow]] = WeakKeyDictionary()
"""What this process has read or packed, for as long as the stream is there."""


def finished_order(
    store: Store, sequence_length: int, seed: int, window_shards: int, packing: Packing = "concat"
) -> SampleOrder | PackedOrder:
    """The order of a finished store's training samples, the store of a mixture excepted."""
    if packing == "best_fit":
        return packed_order(
            store.dir, store.train, store.manifest.shards, window_shards, sequence_length, seed
        )
    return SampleOrder(
        store.train.n_tokens, sequence_length, seed, windows=store.windows(window_shards)
    )


def packed_order(
    folder: Path,
    stream: TokenStream,
    shards: Sequence[ShardInfo],
    window_shards: int,
    sequence_length: int,
    seed: int,
) -> PackedOrder:
    """The order of a store's training stream, or of a beginning of it in whole windows. `folder` is the store's.

    What has not been packed yet is packed by one process, while the others wait for it. A stream's windows are read or packed
    once per process, also where the store cannot be written to: the plan counts them, then training reads them.
    """
    windows = []
    start = 0
    for at in range(0, len(shards), window_shards):
        of_window = shards[at : at + window_shards]
        stop = start + sum(shard.splits["train"].tokens for shard in of_window)
        windows.append(_Window(folder / FOLDER, of_window, start, stop, sequence_length))
        start = stop
    known = _PACKED.setdefault(stream, {})
    packed = [known.get(window.path) or window.read() for window in windows]
    if any(window is None for window in packed):
        with exclusive(folder / FOLDER / "turn", "packing", False):
            packed = [
                found or window.read() or window.pack(stream)
                for window, found in zip(windows, packed, strict=True)
            ]
    known.update((w.path, p) for w, p in zip(windows, packed, strict=True) if p)
    return PackedOrder(
        [(w.first_target, p) for w, p in zip(windows, packed, strict=True) if p],
        sequence_length,
        seed,
    )


@dataclass(frozen=True, slots=True)
class _Window:
    """The tokens [start, stop) of a stream: those of `shards`. `folder` keeps packings."""

    folder: Path
    shards: Sequence[ShardInfo]
    start: int
    stop: int
    sequence_length: int

    @property
    def first_target(self) -> int:
        """Target t is token t + 1."""
        return max(0, self.start - 1)

    @property
    def path(self) -> Path:
        """Named after what decides the content: a store whose shards are built again does not meet an old packing."""
        made_from = [f"{PACKING_VERSION} {self.sequence_length} {self.start == 0}"]
        made_from += [shard.splits["train"].idx_sha256 for shard in self.shards]
        return self.folder / f"{hashlib.sha256(' '.join(made_from).encode()).hexdigest()[:32]}.npy"

    def read(self) -> PackedWindow | None:
        return PackedWindow.read(self.path, max(0, self.stop - 1) - self.first_target)

    def pack(self, stream: TokenStream) -> PackedWindow:
        ends = stream.document_ends(self.start, self.stop) - self.start
        packed = PackedWindow.of(ends, self.start == 0, self.sequence_length)
        try:
            packed.write(self.path)
        except OSError as error:  # a store on a disk that cannot be written to
            logger.info(f"the packing stays in memory: {error}")
        return packed
