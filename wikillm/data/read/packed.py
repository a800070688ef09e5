"""Compute the packings of a store's windows, and keep them in STORE/packed.

One process computes a packing, and the others map its file. A packing depends on the document
lengths of its window; the name of its file is a hash of this input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from wikillm.core.log import logger
from wikillm.data.order.packing import PackedOrder, PackedWindow
from wikillm.data.store.manifest import ShardInfo
from wikillm.data.store.store import TokenStream
from wikillm.data.workers.exclusive import exclusive

PACKING_VERSION = 1
FOLDER = "packed"

_PACKED: WeakKeyDictionary[TokenStream, dict[Path, PackedWindow]] = WeakKeyDictionary()
"""Packings that this process has read or computed, kept as long as the stream exists."""


def packed_order(
    folder: Path,
    stream: TokenStream,
    shards: Sequence[ShardInfo],
    window_shards: int,
    sequence_length: int,
    seed: int,
) -> PackedOrder:
    """The packed order of a training stream, or of its first windows. `folder` is the store's.

    One process packs missing windows while the others wait. A process reads or packs each window
    only once, even if the store is read-only and both the plan and training need the packing.
    """
    # Divide the stream into windows.
    windows = []
    start = 0
    for at in range(0, len(shards), window_shards):
        of_window = shards[at : at + window_shards]
        stop = start + sum(shard.splits["train"].tokens for shard in of_window)
        windows.append(_Window(folder / FOLDER, of_window, start, stop, sequence_length))
        start = stop
    # Use packings that this process has, or that are in files; pack the windows without one.
    known = _PACKED.setdefault(stream, {})
    packings = {window.path: known.get(window.path) or window.read() for window in windows}
    if None in packings.values():
        with exclusive(folder / FOLDER / "turn", "packing", False):
            for window in windows:
                packings[window.path] = (
                    packings[window.path] or window.read() or window.pack(stream)
                )
    known.update((path, packed) for path, packed in packings.items() if packed is not None)
    ordered = [(window.first_target, known[window.path]) for window in windows]
    return PackedOrder(ordered, sequence_length, seed)


@dataclass(frozen=True, slots=True)
class _Window:
    """A window: the tokens [start, stop) of a stream, from `shards`. `folder` holds packings."""

    folder: Path
    shards: Sequence[ShardInfo]
    start: int
    stop: int
    sequence_length: int

    @property
    def first_target(self) -> int:
        """First target of the window; target t is token t + 1."""
        return max(0, self.start - 1)

    @property
    def path(self) -> Path:
        """The file of the packing. Shards that are built again get another name."""
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
        except OSError as error:  # the store may be read-only
            logger.info(f"the packing is kept in memory only: {error}")
        return packed
