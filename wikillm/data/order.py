"""Which tokens are the n-th sample: a pure function of (seed, number of tokens, sequence length, n).

Terms. A stream has N tokens, so it has N-1 targets: target t is token t+1, predicted from token t and what
stands before it. A block is T consecutive targets; an epoch has ceil((N-1)/T) of them, and every target is in
exactly one. Each epoch has its own phase (where the cutting starts; the stream is a ring, so the number of
blocks stays the same) and its own permutation of the blocks. Sample n is block `permutation(n mod blocks)` of
epoch `n div blocks`.

Nothing is stored: the permutation is a Feistel network with cycle-walking, so any of 10^12 samples is found in
microseconds, and the state of a run is one integer, the number of samples consumed. Ranks and workers do not
occur here; who reads which sample is decided in `loader.py`, and only there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wikillm.core.errors import DataError

IGNORED = -100  # the label that torch's cross entropy skips

_ROUNDS = 6  # four suffice for pseudo-randomness (Luby and Rackoff 1988); two more cost nothing that can be measured


def keyed_hash(*parts: int | str) -> int:
    """64 bits that depend on all parts. Randomness here is a hash of (seed, epoch, purpose), never a global generator."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


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
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)  # the network permutes 2*half bits, at most 4 x size
        out = self._feistel(values, half)
        while (outside := out >= self.size).any():  # walk the cycle until inside; fewer than four steps on average
            out = np.where(outside, self._feistel(out, half), out)
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
            mixed = int(_mix(np.array([left], dtype=np.uint64), keyed_hash(self.key, i))[0])
            left, right = right ^ (mixed & low), left
        return (left << half) | right

    def _feistel(self, values: npt.NDArray[np.uint64], half: int) -> npt.NDArray[np.uint64]:
        low = np.uint64((1 << half) - 1)
        left, right = values >> np.uint64(half), values & low
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix(right, keyed_hash(self.key, i)) & low)
        return (left << np.uint64(half)) | right


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """The order of one stream.

    Args:
        n_tokens: tokens in the stream (N).
        sequence_length: inputs, and targets, per sample (T).
        seed: of the phases and permutations.
        shuffle: False reads front to back, for validation.
    """

    n_tokens: int
    sequence_length: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.n_tokens < 2:
            raise DataError("A stream of fewer than two tokens has nothing to predict.", got=f"{self.n_tokens} tokens")

    @property
    def targets_per_epoch(self) -> int:
        return self.n_tokens - 1

    @property
    def blocks_per_epoch(self) -> int:
        return -(-self.targets_per_epoch // self.sequence_length)

    def locate(self, samples: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First target and number of targets (T, fewer in an epoch's one short block) of each sample index."""
        n = np.atleast_1d(np.asarray(samples, dtype=np.int64))
        epochs, index = np.divmod(n, self.blocks_per_epoch)
        starts, counts = np.empty_like(n), np.empty_like(n)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            block, phase = index[here], 0
            if self.shuffle:
                block = Permutation(self.blocks_per_epoch, keyed_hash(self.seed, int(epoch), "blocks"))(block)
                phase = keyed_hash(self.seed, int(epoch), "phase") % self.targets_per_epoch
            first = block * self.sequence_length
            counts[here] = np.minimum(self.sequence_length, self.targets_per_epoch - first)
            starts[here] = (first + phase) % self.targets_per_epoch
        return starts, counts

    def targets_between(self, first: int, stop: int) -> int:
        """Number of targets in the samples [first, stop): what a global batch's loss is divided by.

        O(number of epochs touched): all blocks but an epoch's last hold T targets.
        """
        total = (stop - first) * self.sequence_length
        short = self.blocks_per_epoch * self.sequence_length - self.targets_per_epoch  # missing in the short block
        if short == 0:
            return total
        for epoch in range(first // self.blocks_per_epoch, -(-stop // self.blocks_per_epoch)):
            position = self._position_of_last_block(epoch) + epoch * self.blocks_per_epoch
            if first <= position < stop:
                total -= short
        return total

    def _position_of_last_block(self, epoch: int) -> int:
        """At which index of the epoch the short block is read: the inverse permutation of blocks - 1."""
        last = self.blocks_per_epoch - 1
        if not self.shuffle:
            return last
        permutation = Permutation(self.blocks_per_epoch, keyed_hash(self.seed, epoch, "blocks"))
        return permutation.inverse(last)
