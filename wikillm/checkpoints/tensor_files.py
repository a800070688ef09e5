"""Writes a rank's ranges of the tensor files, and reads any range back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_hexdigest

from wikillm.checkpoints.tensor_digests import Extent, Group, grouped, open_files
from wikillm.checkpoints.tensor_layout import TensorLayout, TensorSpec, read_layout
from wikillm.checkpoints.verified_bytes import VerifiedBytes
from wikillm.core.errors import CheckpointError


def create_files(folder: Path, layout: TensorLayout) -> dict[Group, str]:
    """Create the files with their headers and full sizes. (one rank, before any writes)

    Returns the digests of the headers.
    """
    digests = {}
    for number, file in enumerate(layout.files):
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as opened:
            opened.write(file.header)
            opened.truncate(file.size)
        group = Group(((number, 0, len(file.header)),))
        digests[group] = xxh3_128_hexdigest(file.header)
    return digests


def write_share(
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
        for group in grouped(extents):
            digests[group] = xxh3_128_hexdigest(data[at : at + group.size])
            for file, start, stop in group.extents:
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


class TensorReader:
    """Reads ranges of the tensors of a verified checkpoint. A context manager.

    Args:
        verified: bytes that this process has already read; the rest is read from the files.
    """

    def __init__(self, checkpoint: Path, verified: VerifiedBytes | None = None) -> None:
        self.checkpoint = checkpoint
        self._verified = verified or VerifiedBytes(0)
        self.layout = read_layout(checkpoint)
        self._stack = ExitStack()
        names = [file.name for file in self.layout.files]
        self._fds = self._stack.enter_context(open_files(checkpoint, names, os.O_RDONLY))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def specs(self) -> Mapping[TensorSpec, object]:
        """The tensors of this checkpoint."""
        return self.layout.places

    def read(self, spec: TensorSpec, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Elements [start, stop) of the flattened tensor.

        Raises CheckpointError where the file ends before them.
        """
        file, first, last = self.layout.extent(spec, start, stop)
        name = self.layout.files[file].name
        values = np.empty(stop - start, dtype=np.float32)
        target = values.data.cast("B") if stop > start else memoryview(b"")
        for begin, end in self._verified.copy(name, first, target):
            at = begin
            while at < end:
                count = os.preadv(self._fds[file], [target[at - first : end - first]], at)
                if not count:
                    raise CheckpointError(
                        f"{self.checkpoint / name} is too short.",
                        got=f"nothing at byte {at:,}; {spec.name} is [{first}, {last})",
                    )
                at += count
        return values
