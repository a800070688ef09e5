"""Writes a rank's byte ranges of the tensor files, and reads any range of a tensor back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_hexdigest

from wikillm.checkpoints.tensor_digests import Extent, Group, group_extents, open_files
from wikillm.checkpoints.tensor_layout import TensorLayout, TensorSpec, read_layout
from wikillm.checkpoints.verified_bytes import VerifiedBytes
from wikillm.core.errors import CheckpointError


def create_files(folder: Path, layout: TensorLayout) -> dict[Group, str]:
    """Create the files with their headers and full sizes. (one rank, before any writes)

    Returns the digests of the headers.
    """
    digests: dict[Group, str] = {}
    for number, file in enumerate(layout.files):
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as opened:
            opened.write(file.header)
            opened.truncate(file.size)
        digests[((number, 0, len(file.header)),)] = xxh3_128_hexdigest(file.header)
    return digests


def write_part(
    folder: Path, layout: TensorLayout, extents: Sequence[Extent], data: memoryview
) -> dict[Group, str]:
    """Write this rank's ranges and fsync them; returns their digests. (any rank)

    The files are opened write-only, so that a network file system sends exactly these bytes, and
    never a whole page that includes bytes of another rank.

    Args:
        data: the bytes of `extents`, one range after the other.
    """
    digests: dict[Group, str] = {}
    touched = sorted({file for file, _, _ in extents})
    numbers = {file: number for number, file in enumerate(touched)}
    names = [layout.files[file].name for file in touched]
    with open_files(folder, names, os.O_WRONLY) as fds:
        at = 0
        for group in group_extents(extents):
            size = sum(stop - start for _, start, stop in group)
            digests[group] = xxh3_128_hexdigest(data[at : at + size])
            for file, start, stop in group:
                _write_all(fds[numbers[file]], data[at : at + stop - start], start)
                at += stop - start
        for fd in fds:
            os.fsync(fd)
    return digests


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


@contextmanager
def open_tensors(checkpoint: Path, verified: VerifiedBytes | None = None) -> Iterator[TensorReader]:
    """Open the tensor files of a verified checkpoint, and close them at the end of the block.

    Args:
        verified: bytes that this process has already read; the rest is read from the files.
    """
    layout = read_layout(checkpoint)
    names = [file.name for file in layout.files]
    with open_files(checkpoint, names, os.O_RDONLY) as fds:
        yield TensorReader(checkpoint, layout, fds, verified or VerifiedBytes(0))


@dataclass(frozen=True, slots=True)
class TensorReader:
    """Reads ranges of the tensors of a checkpoint. Made by `open_tensors`."""

    checkpoint: Path
    layout: TensorLayout
    fds: list[int]
    verified: VerifiedBytes

    @property
    def specs(self) -> Mapping[TensorSpec, object]:
        """The tensors of this checkpoint."""
        return self.layout.offsets

    def read(self, spec: TensorSpec, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Elements [start, stop) of the flattened tensor.

        Raises CheckpointError if the file ends before these elements.
        """
        file, first, last = self.layout.extent(spec, start, stop)
        name = self.layout.files[file].name
        values = np.empty(stop - start, dtype=np.float32)
        target = values.data.cast("B") if stop > start else memoryview(b"")
        for begin, end in self.verified.copy(name, first, target):
            at = begin
            while at < end:
                count = os.preadv(self.fds[file], [target[at - first : end - first]], at)
                if not count:
                    raise CheckpointError(
                        f"{self.checkpoint / name} is too short.",
                        got=f"nothing at byte {at:,}; {spec.name} is [{first}, {last})",
                    )
                at += count
        return values
