"""A check for all splitters of the sources: whole records, from any pieces and any start."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wikillm.data.types import Item

Split = Callable[[Iterator[bytes], int], Iterator[Item]]
LIMIT = 1 << 24


def in_pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[at : at + size] for at in range(0, len(content), size))


def whole_and_resumable(split: Split, content: bytes, size: int) -> list[bytes]:
    """Return the records of `content`. Fails unless each is in it and each end is a valid start."""
    items = list(split(in_pieces(content, size), 0))
    for number, (offset, payload, length) in enumerate(items):
        end = offset + length
        assert content[offset:end] == payload
        assert list(split(in_pieces(content[end:], size), end)) == items[number + 1 :]
    return [payload for _, payload, _ in items if payload is not None]
