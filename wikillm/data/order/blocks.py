"""Find the tokens of the n-th sample, a pure function of seed, number of tokens, T and n.

Terms. A stream has N tokens, so it has N-1 targets: target t is token t+1, predicted from token t
and the tokens before it. A block is T consecutive targets; every target is in exactly one block of
an epoch. Each epoch has its own phase (where the cutting starts; the stream is a ring) and its own
permutation of the blocks.

The first epoch reads windows (groups of consecutive shards) in order; each window is a ring
with its own phase and permutation. So the samples of a window depend only on the shards up
to its end: a run that trains while the store is being built reads the same samples as from the
finished store. Every later epoch permutes the blocks of the whole stream, as the first epoch does
in a store with a single window.

No table is stored: the permutation is a Feistel network with cycle-walking, so any of 10^12 samples
is found in microseconds. The state of a run is one integer, the number of samples consumed.
The order does not depend on ranks or workers; `read.loader` divides the samples over the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import DataError
from wikillm.data.order.permutation import Ints, Permutation, keyed_hash

IGNORED = -100  # the label that torch's cross entropy skips

TargetRanges = list[tuple[int, int]]
"""The targets [start, stop) of a sample, in order."""

_CHUNK = 1024  # samples per cached chunk; the second request in a chunk fills the cache


@dataclass(frozen=True, slots=True)
class SourceUse:
    """What a run reads from one source of a mixture. `epochs`: passes over its training split."""

    name: str
    share: float
    samples: int
    tokens: int
    epochs: float


def window_ends(shard_tokens: Sequence[int] | Ints, shards_per_window: int) -> tuple[int, ...]:
    """Token positions at which a stream's windows end; `shard_tokens` includes empty shards."""
    ends = np.cumsum(np.asarray(shard_tokens, dtype=np.int64))
    picked = ends[shards_per_window - 1 :: shards_per_window].tolist()
    if len(ends) % shards_per_window:
        picked.append(int(ends[-1]))
    return tuple(picked)


@dataclass(frozen=True, slots=True)
class _Ring:
    """Targets that are cut into blocks and permuted together: a window, or a later epoch."""

    first: int  # first target of the ring
    targets: int  # number of targets
    sample: int  # index of the first sample of the ring
    before: int  # targets in all samples before `sample`
    key: tuple[int | str, ...]  # key of the ring's phase and permutation

    def blocks(self, length: int) -> int:
        return -(-self.targets // length)

    def permutation(self, seed: int, length: int) -> Permutation:
        return Permutation(
            self.blocks(length), keyed_hash(seed, self.key[0], "blocks", *self.key[1:])
        )

    def phase(self, seed: int) -> int:
        return keyed_hash(seed, self.key[0], "phase", *self.key[1:]) % self.targets


@lru_cache(maxsize=64)
def _index_of_last(ring: _Ring, seed: int, length: int) -> int:
    """The index in its ring of the sample that reads the ring's last block."""
    return ring.permutation(seed, length).inverse(ring.blocks(length) - 1)


class WindowedOrder:
    """Base class of the orders of a stream. In the first epoch, windows are read one by one.

    The most recently requested chunk of samples is cached: training reads in order, and finding a
    whole chunk at once is cheaper than sample by sample.

    Args:
        sequence_length: inputs, and targets, per sample (T).
        samples: number of samples of each window in the first epoch.
    """

    def __init__(self, sequence_length: int, samples: Sequence[int] | Ints) -> None:
        self.sequence_length = sequence_length
        # The first sample of each window, then the number of samples of the first epoch.
        self._samples = np.concatenate([[0], np.cumsum(np.asarray(samples, dtype=np.int64))])
        self._chunk = -1
        self._chunk_ranges = list[TargetRanges]()

    @property
    def blocks_of_first_epoch(self) -> int:
        """Samples of the first epoch, in which each window may end with a short block."""
        return int(self._samples[-1])

    def target_ranges(self, samples: npt.ArrayLike) -> list[TargetRanges]:
        """The targets [start, stop) of each sample, at most T targets in total.

        A sample has a second range where it wraps round its ring, and a packed sample has a range
        for each document.
        """
        n = np.atleast_1d(np.asarray(samples, dtype=np.int64))
        if not n.size:
            return []
        chunk = int(n.min()) // _CHUNK
        if int(n.max()) // _CHUNK != chunk:
            return self._ranges(n)
        # A chunk may be requested only once: by one rank of a thousand, or by a single look-up.
        if chunk != self._chunk:
            self._chunk = chunk
            self._chunk_ranges = []
            return self._ranges(n)
        if not self._chunk_ranges:
            self._chunk_ranges = self._ranges(np.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK))
        return [self._chunk_ranges[i] for i in (n - chunk * _CHUNK).tolist()]

    def _ranges(self, samples: Ints) -> list[TargetRanges]:
        """Compute the target ranges of each sample."""
        raise NotImplementedError

    def end_of_window(self, sample: int) -> int:
        """Index after the last sample of the window of `sample`, which is in the first epoch."""
        return int(self._samples[np.searchsorted(self._samples, sample, side="right")])

    def windows_before(self, sample: int) -> int:
        """Number of the first epoch's windows that the samples before `sample` read."""
        return int(np.searchsorted(self._samples[:-1], sample, side="left"))

    def sources_used(self, samples: int) -> tuple[SourceUse, ...]:
        """What the first `samples` samples read from each source; () without a mixture."""
        return ()


class SampleOrder(WindowedOrder):
    """The order of a stream's samples. In the first epoch they depend on their own window only.

    Args:
        n_tokens: tokens in the stream (N).
        sequence_length: inputs, and targets, per sample (T).
        seed: seed of the phases and permutations.
        shuffle: False reads front to back, for validation.
        windows: token position at which each window ends (`window_ends`); () is one window.
    """

    def __init__(
        self,
        n_tokens: int,
        sequence_length: int,
        seed: int,
        shuffle: bool = True,
        windows: tuple[int, ...] = (),
    ) -> None:
        if n_tokens < 2:
            raise DataError(
                "A stream of fewer than two tokens has nothing to predict.",
                got=f"{n_tokens} tokens",
            )
        ends = np.asarray(windows if windows and shuffle else (n_tokens,), dtype=np.int64)
        if ends[-1] != n_tokens or (np.diff(ends) < 0).any():
            raise ValueError(
                f"windows that end at {ends.tolist()[-3:]} do not cover {n_tokens} tokens"
            )
        # The first target of each window, then the number of targets.
        self._targets = np.concatenate([[0], np.maximum(ends - 1, 0)])
        super().__init__(sequence_length, -(-np.diff(self._targets) // sequence_length))
        self.n_tokens = n_tokens
        self.seed = seed
        self.shuffle = shuffle

    @property
    def targets_per_epoch(self) -> int:
        return self.n_tokens - 1

    @property
    def blocks_per_epoch(self) -> int:
        """Samples of every epoch but the first."""
        return -(-self.targets_per_epoch // self.sequence_length)

    def _ranges(self, samples: Ints) -> list[TargetRanges]:
        found = []
        columns = (column.tolist() for column in self.locate(samples))
        for start, count, first, end in zip(*columns, strict=True):
            stop = min(start + count, end)
            rest = start + count - stop
            found.append([(start, stop), (first, first + rest)] if rest else [(start, stop)])
        return found

    def targets_between(self, first: int, stop: int) -> int:
        """Number of targets in the samples [first, stop), in O(log windows).

        The loss of a global batch is divided by this number.
        """
        return self._targets_before(stop) - self._targets_before(first)

    def _targets_before(self, sample: int) -> int:
        ring = self._ring(int(self._rings_of(np.asarray(sample))))
        length = self.sequence_length
        index = sample - ring.sample
        if index == 0:
            return ring.before
        # Only the last block may hold fewer than T targets; the inverse permutation says when
        # that block is read.
        blocks = ring.blocks(length)
        last = _index_of_last(ring, self.seed, length) if self.shuffle else blocks - 1
        short = blocks * length - ring.targets
        return ring.before + index * length - (short if last < index else 0)

    def locate(self, samples: npt.ArrayLike) -> tuple[Ints, ...]:
        """First target and number of targets of each sample; first target and end of its ring."""
        n = np.atleast_1d(np.asarray(samples, dtype=np.int64))
        rings = self._rings_of(n)
        starts, counts, firsts, ends = (np.empty_like(n) for _ in range(4))
        for number in set(rings.tolist()):  # np.unique would import numpy.ma first, 20 ms
            here = rings == number
            ring = self._ring(number)
            block = n[here] - ring.sample
            phase = 0
            if self.shuffle:
                block = ring.permutation(self.seed, self.sequence_length)(block)
                phase = ring.phase(self.seed)
            offset = block * self.sequence_length
            counts[here] = np.minimum(self.sequence_length, ring.targets - offset)
            starts[here] = ring.first + (offset + phase) % ring.targets
            firsts[here] = ring.first
            ends[here] = ring.first + ring.targets
        return starts, counts, firsts, ends

    def _rings_of(self, samples: Ints) -> Ints:
        """The number of each sample's ring: w for window w, -e for the epoch e after the first."""
        windows = np.searchsorted(self._samples, samples, side="right") - 1
        beyond = samples - self.blocks_of_first_epoch
        return np.where(beyond < 0, windows, -1 - beyond // self.blocks_per_epoch)

    def _ring(self, number: int) -> _Ring:
        if number >= 0:
            first, stop = self._targets[number : number + 2].tolist()
            # Window 0 has a key as that of an epoch: a store with one window is read like an epoch.
            key = (0, number) if number else (0,)
            return _Ring(first, stop - first, int(self._samples[number]), first, key)
        epoch = -number
        sample = self.blocks_of_first_epoch + (epoch - 1) * self.blocks_per_epoch
        return _Ring(0, self.targets_per_epoch, sample, epoch * self.targets_per_epoch, (epoch,))
