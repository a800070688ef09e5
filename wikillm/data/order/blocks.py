"""Which tokens are the n-th sample: a pure function of (seed, number of tokens, sequence length, n).

Terms. A stream has N tokens, so it has N-1 targets: target t is token t+1, predicted from token t and what
stands before it. A block is T consecutive targets; every target is in exactly one block of an epoch. Each epoch has
its own phase (where the cutting starts; the stream is a ring) and its own permutation of the blocks.

The first epoch goes through windows, groups of consecutive shards, in their order; each window is a ring with a phase
and a permutation of its own. So the samples of a window depend on the shards up to its end only: a run that trains
while the store is still being built reads what it would read from the finished one. Every later epoch permutes
all blocks, and so does the first one of a store with a single window.

Nothing is stored: the permutation is a Feistel network with cycle-walking, so any of 10^12 samples is found in
microseconds, and the state of a run is one integer, the number of samples consumed. Ranks and workers do not
occur here; who reads which sample is decided in `loader.py`, and only there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import DataError

IGNORED = -100  # the label that torch's cross entropy skips

Pieces = list[tuple[int, int]]  # the targets [start, stop) of a sample, in order

_CHUNK = 1024  # samples whose places are kept once two requests fell among them
_ROUNDS = 6  # four suffice for pseudo-randomness (Luby and Rackoff 1988); two more cost nothing that can be measured


def keyed_hash(*parts: int | str) -> int:
    """64 bits that depend on all parts. Randomness here is a hash of (seed, epoch, purpose), never a global generator."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=256)
def _round_keys(key: int) -> tuple[int, ...]:
    return tuple(keyed_hash(key, i) for i in range(_ROUNDS))


def _mix(value: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 over value + key: the round function, on uint64 with wrap-around."""
    z = value + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Permutation:
    """A keyed bijection of range(size), computed pointwise."""

    size: int
    key: int

    def __call__(self, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The images of `index` (any shape, each in [0, size))."""
        values = np.asarray(index, dtype=np.uint64)
        if values.size and int(values.max()) >= self.size:
            raise IndexError(f"index {int(values.max())} is outside a permutation of {self.size}")
        if self.size < 2:
            return values.astype(np.int64)
        half = max(
            1, ((self.size - 1).bit_length() + 1) // 2
        )  # the network permutes 2*half bits, at most 4 x size
        out = self._feistel(values, half)
        flat = out.reshape(-1)  # a view
        outside = np.flatnonzero(flat >= self.size)
        while outside.size:  # walk the cycle until inside; fewer than four steps on average
            walked = self._feistel(flat[outside], half)
            flat[outside] = walked
            outside = outside[walked >= self.size]
        return out.astype(np.int64)

    def inverse(self, image: int) -> int:
        """The index whose image is `image`."""
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)
        if self.size < 2:
            return image
        out = self._unfeistel(image, half)
        while out >= self.size:
            out = self._unfeistel(out, half)
        return out

    def _unfeistel(self, value: int, half: int) -> int:
        low = (1 << half) - 1
        left, right = value >> half, value & low
        for i in reversed(range(_ROUNDS)):
            mixed = int(_mix(np.array([left], dtype=np.uint64), _round_keys(self.key)[i])[0])
            left, right = right ^ (mixed & low), left
        return (left << half) | right

    def _feistel(self, values: npt.NDArray[np.uint64], half: int) -> npt.NDArray[np.uint64]:
        low = np.uint64((1 << half) - 1)
        left, right = values >> np.uint64(half), values & low
        for key in _round_keys(self.key):
            left, right = right, left ^ (_mix(right, key) & low)
        return (left << np.uint64(half)) | right


class RecentPieces:
    """The pieces of the chunk of samples that was asked for last: training reads in order, and one by one costs more."""

    def __init__(self) -> None:
        self._chunk, self._known = -1, list[Pieces]()

    def look_up(
        self, samples: npt.ArrayLike, find: Callable[[npt.NDArray[np.int64]], list[Pieces]]
    ) -> list[Pieces]:
        """What `find` says of these samples, asked for a whole chunk once two requests fell into it."""
        n = np.atleast_1d(np.asarray(samples, dtype=np.int64))
        if not n.size:
            return []
        chunk = int(n.min()) // _CHUNK
        if int(n.max()) // _CHUNK != chunk:
            return find(n)
        if (
            chunk != self._chunk
        ):  # a rank among a thousand others, or somebody who looks up a single sample
            self._chunk, self._known = chunk, []
            return find(n)
        if not self._known:
            self._known = find(np.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK))
        return [self._known[i] for i in (n - chunk * _CHUNK).tolist()]


def window_ends(
    shard_tokens: Sequence[int] | npt.NDArray[np.int64], shards_per_window: int
) -> tuple[int, ...]:
    """Where the windows of a stream end, as positions in it; `shard_tokens` has every shard, the empty ones too."""
    ends = np.cumsum(np.asarray(shard_tokens, dtype=np.int64))
    picked = ends[shards_per_window - 1 :: shards_per_window].tolist()
    if len(ends) % shards_per_window:
        picked.append(int(ends[-1]))
    return tuple(picked)


@dataclass(frozen=True, slots=True)
class _Ring:
    """A stretch of targets that is cut into blocks and permuted on its own: a window of epoch 1, or a later epoch."""

    first: int  # its first target
    targets: int
    sample: int  # index of its first sample
    before: int  # targets in all samples before that one
    key: tuple[int | str, ...]  # of its phase and permutation

    def blocks(self, length: int) -> int:
        return -(-self.targets // length)

    def permutation(self, seed: int, length: int) -> Permutation:
        return Permutation(self.blocks(length), keyed_hash(seed, *_purpose(self.key, "blocks")))

    def phase(self, seed: int) -> int:
        return keyed_hash(seed, *_purpose(self.key, "phase")) % self.targets


def _purpose(key: tuple[int | str, ...], purpose: str) -> tuple[int | str, ...]:
    return key[0], purpose, *key[1:]


class Windows:
    """Which samples of the first epoch belong to which window. `_samples`: first sample of each window, and the end."""

    __slots__ = ()
    _samples: npt.NDArray[np.int64]

    @property
    def blocks_of_first_epoch(self) -> int:
        """Samples of the first epoch: each window may have a short block."""
        return int(self._samples[-1])

    def end_of_window(self, sample: int) -> int:
        """Index after the last sample of the window that holds `sample`, a sample of epoch 1."""
        return int(self._samples[np.searchsorted(self._samples, sample, side="right")])

    def windows_before(self, sample: int) -> int:
        """Windows of epoch 1 that the samples before `sample` come from; all of them from its end on."""
        return int(np.searchsorted(self._samples[:-1], sample, side="left"))


@dataclass(frozen=True, slots=True)
class SampleOrder(Windows):
    """The order of one stream, or of a beginning of it in whole windows: their samples are the same.

    Args:
        n_tokens: tokens in the stream (N).
        sequence_length: inputs, and targets, per sample (T).
        seed: of the phases and permutations.
        shuffle: False reads front to back, for validation.
        windows: where each window of epoch 1 ends (`window_ends`); nothing means that the stream is one window.
    """

    n_tokens: int
    sequence_length: int
    seed: int
    shuffle: bool = True
    windows: tuple[int, ...] = ()
    _targets: npt.NDArray[np.int64] = field(
        init=False, repr=False, compare=False
    )  # first of each window, and the end
    _samples: npt.NDArray[np.int64] = field(
        init=False, repr=False, compare=False
    )  # the same for samples
    _recent: RecentPieces = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n_tokens < 2:
            raise DataError(
                "A stream of fewer than two tokens has nothing to predict.",
                got=f"{self.n_tokens} tokens",
            )
        ends = np.asarray(
            self.windows if self.windows and self.shuffle else (self.n_tokens,), dtype=np.int64
        )
        if ends[-1] != self.n_tokens or (np.diff(ends) < 0).any():
            raise ValueError(
                f"windows that end at {ends.tolist()[-3:]} do not make up {self.n_tokens} tokens"
            )
        targets = np.concatenate([[0], np.maximum(ends - 1, 0)])
        blocks = -(-np.diff(targets) // self.sequence_length)
        object.__setattr__(self, "_recent", RecentPieces())
        object.__setattr__(self, "_targets", targets)
        object.__setattr__(self, "_samples", np.concatenate([[0], np.cumsum(blocks)]))

    @property
    def targets_per_epoch(self) -> int:
        return self.n_tokens - 1

    @property
    def blocks_per_epoch(self) -> int:
        """Samples of every epoch but the first."""
        return -(-self.targets_per_epoch // self.sequence_length)

    def locate(self, samples: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First target and number of targets (T, fewer in a ring's one short block) of each sample index."""
        starts, counts, _, _ = self._place(samples)
        return starts, counts

    def pieces(self, samples: npt.ArrayLike) -> list[Pieces]:
        """The targets [start, stop) of each sample: one stretch, or two where it goes round the end of its ring."""
        return self._recent.look_up(samples, self._pieces)

    def _pieces(self, samples: npt.NDArray[np.int64]) -> list[Pieces]:
        found = []
        for start, count, first, end in zip(
            *(part.tolist() for part in self._place(samples)), strict=True
        ):
            stop = min(start + count, end)
            rest = start + count - stop
            found.append([(start, stop), (first, first + rest)] if rest else [(start, stop)])
        return found

    def targets_between(self, first: int, stop: int) -> int:
        """Number of targets in the samples [first, stop): what a global batch's loss is divided by. O(log windows)."""
        return self._targets_before(stop) - self._targets_before(first)

    def _targets_before(self, sample: int) -> int:
        """All blocks but a ring's last hold T targets; where that one is read is the inverse of the permutation."""
        ring, length = self._ring(self._ring_of(sample)), self.sequence_length
        index, blocks = sample - ring.sample, ring.blocks(length)
        if index == 0:
            return ring.before
        last = (
            ring.permutation(self.seed, length).inverse(blocks - 1) if self.shuffle else blocks - 1
        )
        short = blocks * length - ring.targets
        return ring.before + index * length - (short if last < index else 0)

    def _place(self, samples: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], ...]:
        """Per sample: first target, number of targets, and the first and last + 1 target of its ring."""
        n = np.atleast_1d(np.asarray(samples, dtype=np.int64))
        first_epoch = self.blocks_of_first_epoch
        rings = np.searchsorted(self._samples, n, side="right") - 1
        rings = np.where(n < first_epoch, rings, -1 - (n - first_epoch) // self.blocks_per_epoch)
        starts, counts, firsts, ends = (np.empty_like(n) for _ in range(4))
        for number in set(rings.tolist()):  # np.unique would import numpy.ma first, 20 ms
            here, ring = rings == number, self._ring(number)
            block, phase = n[here] - ring.sample, 0
            if self.shuffle:
                block = ring.permutation(self.seed, self.sequence_length)(block)
                phase = ring.phase(self.seed)
            offset = block * self.sequence_length
            counts[here] = np.minimum(self.sequence_length, ring.targets - offset)
            starts[here] = ring.first + (offset + phase) % ring.targets
            firsts[here], ends[here] = ring.first, ring.first + ring.targets
        return starts, counts, firsts, ends

    def _ring_of(self, sample: int) -> int:
        """The number of a sample's ring: w for window w of the first epoch, -e for all of epoch e (from 0)."""
        beyond = sample - self.blocks_of_first_epoch
        if beyond >= 0:
            return -1 - beyond // self.blocks_per_epoch
        return int(np.searchsorted(self._samples, sample, side="right")) - 1

    def _ring(self, number: int) -> _Ring:
        if number >= 0:
            first, stop = int(self._targets[number]), int(self._targets[number + 1])
            key = (
                (0, number) if number else (0,)
            )  # a store of one window has the order of a later epoch
            return _Ring(first, stop - first, int(self._samples[number]), first, key)
        epoch = -number
        sample = self.blocks_of_first_epoch + (epoch - 1) * self.blocks_per_epoch
        return _Ring(0, self.targets_per_epoch, sample, epoch * self.targets_per_epoch, (epoch,))
