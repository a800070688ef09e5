"""Random numbers from a hash, and a permutation of any size that is computed point by point.

The permutation is a Feistel network with cycle-walking, so no table is stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_ROUNDS = 6  # four suffice for pseudo-randomness (Luby and Rackoff 1988); two more are free


def keyed_hash(*parts: int | str) -> int:
    """A 64-bit hash of all parts.

    The data engine draws random numbers as a hash of (seed, epoch, purpose), never from a global
    generator.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=256)
def _round_keys(key: int) -> tuple[int, ...]:
    return tuple(keyed_hash(key, i) for i in range(_ROUNDS))


def _mix(value: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """The round function: the finaliser of splitmix64 applied to value + key, modulo 2^64."""
    z = value + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Permutation:
    """A keyed bijection of range(size), computed pointwise."""

    size: int
    key: int

    def __call__(self, index: npt.ArrayLike) -> Ints:
        """The images of `index` (any shape, each in [0, size))."""
        values = np.asarray(index, dtype=np.uint64)
        if values.size and int(values.max()) >= self.size:
            raise IndexError(f"index {int(values.max())} is outside a permutation of {self.size}")
        return self._walk(values)

    def inverse(self, image: int) -> int:
        """The index whose image is `image`."""
        return int(self._walk(np.array([image], dtype=np.uint64), inverse=True)[0])

    def _walk(self, values: npt.NDArray[np.uint64], inverse: bool = False) -> Ints:
        """Apply the network until each value is below `size`; fewer than four times on average."""
        if self.size < 2:
            return values.astype(np.int64)
        out = self._feistel(values, inverse)
        flat = out.reshape(-1)  # a view
        outside = np.flatnonzero(flat >= self.size)
        while outside.size:
            walked = self._feistel(flat[outside], inverse)
            flat[outside] = walked
            outside = outside[walked >= self.size]
        return out.astype(np.int64)

    def _feistel(self, values: npt.NDArray[np.uint64], inverse: bool) -> npt.NDArray[np.uint64]:
        """A permutation of the numbers of 2 x `half` bits, at most four times `size`."""
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)
        low = np.uint64((1 << half) - 1)
        left = values >> np.uint64(half)
        right = values & low
        keys = _round_keys(self.key)
        # The inverse runs the rounds backwards, with its halves swapped before and after.
        if inverse:
            left, right = right, left
            keys = keys[::-1]
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & low)
        if inverse:
            left, right = right, left
        return (left << np.uint64(half)) | right
